"""Reading of folders of images: finding the files, decoding one, and all as arrays."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded
from mhd_jax.core.validation import require_kind
from mhd_jax.core.warned import warn
from mhd_jax.data.lazy_images import LazyImages, fits_in_memory

_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
_OF_NOTES = (
    ".csv", ".htm", ".html", ".json", ".md", ".pdf", ".rst", ".txt", ".xml", ".yaml", ".yml",
)  # fmt: skip
_OF_SYSTEMS = ("__macosx", "@eadir", "desktop.ini", "thumbs.db")
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev")
SPLIT_NAMES = (
    f"{TRAIN_NAMES[0]} (or {TRAIN_NAMES[1]}) and {TEST_NAMES[0]} (or {', '.join(TEST_NAMES[1:])})"
)
_GREY_MODES = ("1", "L", "LA", "La")
_LARGEST_SIDE = 2**14  # pixels


class ImageFiles(NamedTuple):
    """The image files of one split, in the order of their classes and names.

    Attributes:
      paths: N files.
      labels: the index of each file's class, int32 [N].
      class_names: C names, sorted.
    """

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]


def read(
    folder: str | os.PathLike[str],
    image_size: int | None = None,
    channels: int | None = None,
    in_memory: bool | None = None,
) -> dict[str, Any]:
    """Reads images, labels and class names of a folder of images.

    Args:
      folder: a folder of the form that `find` describes.
      image_size: as for `decode`; without it all images must have one size.
      channels: 3 for colour, 1 for grey; by default 1 if all images are grey, else 3.
      in_memory: whether to read all images now, or each image when it is needed (`LazyImages`); by
        default all are read now if they fit in a quarter of the memory.

    Returns:
      "images" uint8 [N, H, W, channels], "labels", "class_names", and "test_images" and
      "test_labels" if the folder has a test split.

    Raises:
      ConfigError: a folder of another form, or an image that cannot be read or has another
        size than the first, named.
    """
    train, test = find(folder)
    splits = {"": train, "test_": test} if test else {"": train}
    if channels is None:
        every = (path for files in splits.values() for path in files.paths)
        channels = _channels(every)
    first = train.paths[0]
    shape = decode(first, image_size, channels).shape
    if in_memory is None:
        in_memory = fits_in_memory(sum(len(files.paths) for files in splits.values()), shape)
    content: dict[str, Any] = {"class_names": train.class_names}
    for prefix, files in splits.items():
        images = _lazy(files.paths, image_size, shape, first)
        content[f"{prefix}images"] = images.read_all() if in_memory else images
        content[f"{prefix}labels"] = files.labels
    return content


def find(folder: str | os.PathLike[str]) -> tuple[ImageFiles, ImageFiles | None]:
    """Finds the image files of a folder with one subfolder for each class.

    Or the folder has a subfolder `train` or `training`, and beside it possibly `test`, `testing`,
    `val`, `valid`, `validation` or `dev` (the first that exists), each with one subfolder for each
    class; case does not matter. Hidden files and files that operating systems leave behind are
    ignored; other files that are not images are left out, with a warning unless they look like
    notes.

    Returns:
      The training split, and the test split or None if the folder has none.

    Raises:
      ConfigError: a class without images, or a class that one of the splits lacks.
    """
    folder = expanded(folder)
    inside = _entries(folder)
    train, test = _splits(folder, inside)
    if train is None:
        found, left_out = _classes(folder)
        _warn_of(left_out, folder)
        return found, None
    training, left_out = _classes(train)
    left_out += [entry for entry in inside if _is_left_out(entry)]
    testing = None
    if test is not None:
        testing, more = _classes(test)
        left_out += more
        _require_same_classes((training, train), (testing, test))
    _warn_of(left_out, folder)
    return training, testing


def _splits(
    folder: pathlib.Path, inside: Sequence[pathlib.Path]
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Returns the folders of training and test split; None if subfolders are classes."""
    paths = [path for path in inside if path.is_dir()]
    trains, tests = (
        [path for name in names for path in paths if path.name.lower() == name]
        for names in (TRAIN_NAMES, TEST_NAMES)
    )
    if not trains or not (tests or trains == paths):
        return None, None
    if len(trains) > 1:
        raise ConfigError(
            f"{folder} has {' and '.join(path.name for path in trains)}; leave one to train on."
        )
    return trains[0], tests[0] if tests else None


def _require_same_classes(*splits: tuple[ImageFiles, pathlib.Path]) -> None:
    for (here, _), (there, path) in (splits, splits[::-1]):
        missing = [name for name in here.class_names if name not in there.class_names]
        if missing:
            raise ConfigError(
                f"{path} lacks the class {', '.join(missing[:10])}; both splits need the same classes."
            )


def _is_left_out(path: pathlib.Path) -> bool:
    """Returns whether a file that is not an image may have been meant as a sample."""
    return not path.is_dir() and path.suffix.lower() not in _OF_NOTES


def _warn_of(left_out: Sequence[pathlib.Path], folder: pathlib.Path) -> None:
    if left_out:
        warn(
            f"{len(left_out):,} files of {folder} are left out, {left_out[0].relative_to(folder)} for "
            f"one: samples lie in the folders of their classes and end in {', '.join(_SUFFIXES)}."
        )


def decode(
    path: str | os.PathLike[str] | BinaryIO,
    image_size: int | None = None,
    channels: int = 3,
    name: str | None = None,
) -> np.ndarray:
    """Decodes one image, turned by its EXIF orientation, without transparency.

    Of colours of 16 bits a channel Pillow reads the upper 8.

    Args:
      path: a file that Pillow reads, or its content.
      image_size: the number of pixels to which the shorter side is resized (bilinear,
        antialiased), before the centre is cropped to a square; None leaves the image's size.
      channels: 3 for colour, 1 for grey.
      name: the file's name for errors, by default its path.

    Returns:
      uint8 [H, W, channels].

    Raises:
      ConfigError: a file that is damaged, not an image, or grey with more than 8 bits.
    """
    require_image_size(image_size)
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (colour), not {channels}.")
    try:
        with Image.open(path) as stored:
            image = ImageOps.exif_transpose(stored)  # decodes the whole image
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns without this
        if image.mode != "F" and not image.mode.startswith("I"):
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # each format's reader raises its own types
        raise ConfigError(
            f"{name or path} cannot be read as an image ({error}); replace or remove it."
        ) from error
    if image.mode not in ("L", "RGB"):
        raise ConfigError(
            f"{name or path} has pixels of more than 8 bits (mode {image.mode}); convert it to 8 bits, or "
            "give arrays of float32."
        )
    if image_size is not None:
        image = fit(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, channels)


def decode_all(
    files: Sequence[BinaryIO | str],
    names: Sequence[str],
    image_size: int | None = None,
    channels: int | None = None,
) -> np.ndarray:
    """Decodes images, contents or paths of files, to uint8 [N, H, W, channels].

    Args:
      files, names: N images, and their names for errors.
      image_size, channels: as for `read`.

    Raises:
      ConfigError: an image that cannot be read, or has another size than the first.
    """
    channels = _channels(files) if channels is None else channels
    first = decode(files[0], image_size, channels, names[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, (file, name) in enumerate(zip(files, names, strict=True)):
        images[row] = _decoded(file, image_size, first.shape, names[0], name)
    return images


def require_image_size(image_size: int | None) -> None:
    """Raises `ConfigError` unless `image_size` is None or a possible side of an image."""
    require_kind("image_size", "int | None", image_size)
    if image_size is not None and not 1 <= image_size <= _LARGEST_SIDE:
        bound = "at least 1" if image_size < 1 else f"at most {_LARGEST_SIDE}"
        raise ConfigError(f"image_size must be {bound}, not {image_size}.")


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size` pixels (bilinear, antialiased) and crops the centre."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def _lazy(
    paths: Sequence[pathlib.Path],
    image_size: int | None,
    shape: tuple[int, int, int],
    like: pathlib.Path,
) -> LazyImages:
    def read_some(numbers: Sequence[int]) -> np.ndarray:
        images = np.empty((len(numbers), *shape), np.uint8)
        for row, number in enumerate(numbers):
            images[row] = _decoded(paths[number], image_size, shape, like)
        return images

    found = [path.stat() for path in paths]
    names = "\n".join(
        f"{path.parent.name}/{path.name} {stat.st_size}"
        for path, stat in zip(paths, found, strict=True)
    )
    identity = hashlib.sha256(os.fsencode(names)).hexdigest()
    keys = np.array([hash((stat.st_dev, stat.st_ino)) for stat in found], np.int64)
    return LazyImages(read_some, np.arange(len(paths)), shape, identity, keys)


def _decoded(
    path: str | os.PathLike[str] | BinaryIO,
    image_size: int | None,
    shape: tuple[int, ...],
    like: str | pathlib.Path,
    name: str | None = None,
) -> np.ndarray:
    """Decodes an image; raises `ConfigError` unless it has the shape of the image at `like`."""
    image = decode(path, image_size, shape[-1], name)
    if image.shape != shape:
        raise ConfigError(
            f"{name or path} has {image.shape[0]} × {image.shape[1]} pixels, but {like} has "
            f"{shape[0]} × {shape[1]}; give image_size to bring all to one size."
        )
    return image


def _channels(files: Iterable[str | os.PathLike[str] | BinaryIO]) -> int:
    """Returns 1 if all images are grey, else 3; it stops at the first in colour."""
    return 1 if all(map(_is_grey, files)) else 3


def _is_grey(path: str | os.PathLike[str] | BinaryIO) -> bool:
    """Returns whether an image is grey by its header."""
    try:
        with Image.open(path) as image:
            return image.mode in _GREY_MODES
    except Exception:  # decoding the image reports the error
        return False


def _classes(folder: pathlib.Path) -> tuple[ImageFiles, list[pathlib.Path]]:
    """Returns a folder's images by class, and files that may have been meant as samples."""
    beside = _entries(folder)
    classes = [path for path in beside if path.is_dir()]
    if not classes:
        raise ConfigError(f"{folder} has no folders; it needs one for each class.")
    paths: list[pathlib.Path] = []
    counts = []
    left_out = [entry for entry in beside if _is_left_out(entry)]
    for path in classes:
        inside = _entries(path)
        deeper = [entry.name for entry in inside if entry.is_dir()]
        if deeper:
            raise ConfigError(
                f"the class folder {path} has folders of its own ({', '.join(deeper[:5])}); put a "
                f"class's images directly into its folder, or name the splits {SPLIT_NAMES}."
            )
        files = [entry for entry in inside if entry.suffix.lower() in _SUFFIXES]
        for entry in files:
            if not entry.is_file():
                raise ConfigError(f"{entry} is not a file, or leads to none; replace or remove it.")
        others = [entry for entry in inside if entry.suffix.lower() not in _SUFFIXES]
        left_out += [entry for entry in others if _is_left_out(entry)]
        if not files:
            found = f", but {', '.join(entry.name for entry in others[:3])}" if others else ""
            raise ConfigError(
                f"the class folder {path} holds no image{found}; fill or remove it (images end in "
                f"{', '.join(_SUFFIXES)})."
            )
        paths += files
        counts.append(len(files))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return ImageFiles(tuple(paths), labels, tuple(path.name for path in classes)), left_out


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns a folder's visible entries by name, without files of operating systems."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name.lower() not in _OF_SYSTEMS
        )
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}.") from error
