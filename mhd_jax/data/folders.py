"""Folders of images: which files there are, what one of them holds, and all of them as arrays."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mhd_jax.checks import require_kind
from mhd_jax.data.lazy import LazyImages, fits_in_memory
from mhd_jax.errors import ConfigError

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TEST_NAMES = ("test", "val", "validation")
_GREY_MODES = ("1", "L", "LA", "La")
_LARGEST_SIDE = 2**14  # pixels
_AT_ONCE = 32  # images that a thread decodes before it takes the next ones


class ImageFiles(NamedTuple):
    """The images of one split, in the order of their classes and names.

    Attributes:
      paths: N files.
      labels: int32 [N], the position of each one's class.
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
    """Images, labels and class names of a folder of images.

    Args:
      folder: as `find` takes it.
      image_size: as `decode` takes it; without it all images must have one size.
      channels: 3 for colour, 1 for grey; by default 1 where all images are grey, else 3.
      in_memory: whether all are read now, or each when it is needed (`LazyImages`); by default
        as far as a quarter of the memory goes.

    Returns:
      "images" uint8 [N, H, W, channels], "labels", "class_names", and "test_images" and
      "test_labels" where the folder has a test split.

    Raises:
      ConfigError: a folder of another form, or an image that cannot be read or has another
        size than the first, named.
    """
    train, test = find(folder)
    splits = {"": train, "test_": test} if test else {"": train}
    if channels is None:
        channels = 1 if all_grey(path for files in splits.values() for path in files.paths) else 3
    first = train.paths[0]
    shape = decode(first, image_size, channels).shape
    if in_memory is None:
        in_memory = fits_in_memory(sum(len(files.paths) for files in splits.values()), shape)
    content: dict[str, Any] = {"class_names": train.class_names}
    for prefix, files in splits.items():
        images: Any = _lazy(files.paths, image_size, shape, first)
        if in_memory:
            images = np.empty((len(files.paths), *shape), np.uint8)
            decode_all(files.paths, image_size, images, first)
        content |= {f"{prefix}images": images, f"{prefix}labels": files.labels}
    return content


def find(folder: str | os.PathLike[str]) -> tuple[ImageFiles, ImageFiles | None]:
    """The images of a folder that has one subfolder for each class.

    Or it has `train`, and beside it `test`, `val` or `validation` (the first of these that is
    there), which have one for each class. Hidden files and those that are no images are left
    out.

    Returns:
      The training split and the test split, or None where the folder has none.

    Raises:
      ConfigError: a class without images, or that one of the splits lacks.
    """
    folder = pathlib.Path(folder)
    names = [path.name for path in _entries(folder) if path.is_dir()]
    tests = [name for name in _TEST_NAMES if name in names]
    if "train" not in names or not (tests or names == ["train"]):
        return _classes(folder), None
    train = _classes(folder / "train")
    if not tests:
        return train, None
    test = _classes(folder / tests[0])
    for here, there, beside in ((train, test, tests[0]), (test, train, "train")):
        missing = [name for name in here.class_names if name not in there.class_names]
        if missing:
            raise ConfigError(
                f"{folder / beside} lacks the class {', '.join(missing[:10])}; both splits need the "
                "same classes."
            )
    return train, test


def decode(
    path: str | os.PathLike[str], image_size: int | None = None, channels: int = 3
) -> np.ndarray:
    """One image, turned upright as its EXIF orientation says; transparency is dropped.

    Args:
      path: of a file that Pillow reads.
      image_size: the shorter side is resized to so many pixels (bilinear, antialiased), and
        the centre cropped to a square; None leaves the image as it is.
      channels: 3 for colour, 1 for grey.

    Returns:
      uint8 [H, W, channels].

    Raises:
      ConfigError: a file that is damaged, no image, or of more than 8 bits.
    """
    require_image_size(image_size)
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (colour), not {channels}.")
    try:
        with Image.open(path) as stored:
            image = ImageOps.exif_transpose(stored)  # decodes all of it
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # what Pillow asks for, with a warning
        if image.mode != "F" and not image.mode.startswith("I"):
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # each format's reader raises its own
        raise ConfigError(
            f"{path} cannot be read as an image ({error}); replace or remove it."
        ) from error
    if image.mode not in ("L", "RGB"):
        raise ConfigError(
            f"{path} has pixels of more than 8 bits (mode {image.mode}); convert it to 8 bits, or "
            "give arrays of float32."
        )
    if image_size is not None:
        image = fit(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, channels)


def require_image_size(image_size: int | None) -> None:
    """Raises `ConfigError` unless that many pixels can be an image's side."""
    require_kind("image_size", "int | None", image_size)
    if image_size is not None and not 1 <= image_size <= _LARGEST_SIDE:
        bound = "at least 1" if image_size < 1 else f"at most {_LARGEST_SIDE}"
        raise ConfigError(f"image_size must be {bound}, not {image_size}.")


def fit(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` pixels (bilinear, antialiased), and the centre of that."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def decode_all(
    paths: Sequence[pathlib.Path],
    image_size: int | None,
    images: np.ndarray,
    like: str | os.PathLike[str],
) -> None:
    """Decodes files into an array by several threads.

    Args:
      paths: N files.
      image_size: as `decode` takes it.
      images: uint8 [N, H, W, channels], to be filled.
      like: the file from which the array has its shape, for errors.

    Raises:
      ConfigError: the first file that cannot be read, or has another size.
    """

    def fill(start: int) -> None:
        for row in range(start, min(start + _AT_ONCE, len(paths))):
            _decode_into(images, row, paths[row], image_size, like)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(0, len(paths), _AT_ONCE)):
            pass


def _lazy(
    paths: Sequence[pathlib.Path],
    image_size: int | None,
    shape: tuple[int, int, int],
    like: pathlib.Path,
) -> LazyImages:
    def read_some(numbers: Sequence[int]) -> np.ndarray:
        images = np.empty((len(numbers), *shape), np.uint8)
        for row, number in enumerate(numbers):
            _decode_into(images, row, paths[number], image_size, like)
        return images

    found = [path.stat() for path in paths]
    names = "\n".join(
        f"{path.parent.name}/{path.name} {stat.st_size}"
        for path, stat in zip(paths, found, strict=True)
    )
    identity = hashlib.sha256(os.fsencode(names)).hexdigest()
    keys = np.array([hash((stat.st_dev, stat.st_ino)) for stat in found], np.int64)
    return LazyImages(read_some, np.arange(len(paths)), shape, identity, keys)


def _decode_into(
    images: np.ndarray,
    row: int,
    path: pathlib.Path,
    image_size: int | None,
    like: str | os.PathLike[str],
) -> None:
    image = decode(path, image_size, images.shape[-1])
    if image.shape != images.shape[1:]:
        raise ConfigError(
            f"{path} has {image.shape[0]} × {image.shape[1]} pixels, but {like} has "
            f"{images.shape[1]} × {images.shape[2]}; give image_size to bring all to one size."
        )
    images[row] = image


def all_grey(paths: Iterable[pathlib.Path]) -> bool:
    """Whether all images are grey by their headers; reads as far as the first in colour."""
    return all(map(_is_grey, paths))


def _is_grey(path: pathlib.Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode in _GREY_MODES
    except Exception:  # decoding it names what is wrong
        return False


def _classes(folder: pathlib.Path) -> ImageFiles:
    classes = [path for path in _entries(folder) if path.is_dir()]
    if not classes:
        raise ConfigError(f"{folder} has no folders; it needs one for each class.")
    paths: list[pathlib.Path] = []
    counts = []
    for path in classes:
        inside = _entries(path)
        deeper = [entry.name for entry in inside if entry.is_dir()]
        if deeper:
            raise ConfigError(
                f"the class folder {path} has folders of its own ({', '.join(deeper[:5])}); put a "
                "class's images directly into its folder."
            )
        files = [entry for entry in inside if entry.suffix.lower() in _SUFFIXES]
        for entry in files:
            if not entry.is_file():
                raise ConfigError(f"{entry} is not a file, or leads to none; replace or remove it.")
        if not files:
            raise ConfigError(f"the class folder {path} holds no image; fill or remove it.")
        paths += files
        counts.append(len(files))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return ImageFiles(tuple(paths), labels, tuple(path.name for path in classes))


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What a folder shows, by name."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}.") from error
