"""Data: arrays of any shape and type, .npz files, folders of images."""

import io
import os
import pathlib
import warnings

import numpy as np
from hypothesis import strategies as st
from PIL import Image

import mhd_jax as mhd
from mhd_jax.models import build_backbone
from tests.fuzzing.kinds import Trap, attempt, damages, kind, odd_values, one_in, scratch

TYPES = ["u1", "f4", "f8", "f2", "i8", "i4", "u8", "?", "c8", "U3", "M8[s]", "m8[s]", "O"]


@st.composite
def pictures(draw, samples):
    """An array of that many samples, mostly."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = draw(st.sampled_from([(4, 4, 1), (3, 5, 3), (6,), (3, 8, 8), (8, 8)]))
    if draw(one_in(10)):
        shape = draw(st.sampled_from([(1,), (), (0,), (2, 0, 1)]))
    images = rng.integers(0, 300 if draw(st.booleans()) else 255, (samples, *shape)).astype(float)
    if images.size and draw(one_in(5)):
        odd = draw(st.sampled_from([np.nan, np.inf, -1.0, 1e300, 2.0**40]))
        images.flat[draw(st.integers(0, images.size - 1))] = odd
    with np.errstate(all="ignore"):
        return images.astype(draw(st.sampled_from(TYPES if draw(one_in(3)) else TYPES[:7])))


@st.composite
def data_sets(draw):
    """Images, labels and options."""
    samples = draw(st.sampled_from([0, 1, 9] if draw(one_in(10)) else [30, 31]))
    images = draw(pictures(samples))
    classes = 1 if draw(one_in(20)) else draw(st.integers(2, 4))
    labels = np.arange(samples) % classes
    if draw(one_in(4)):
        odd = [labels + 1, labels - 1, labels * 2**32, labels * 10**9, labels[:-1], labels[:, None]]
        labels = draw(st.sampled_from(odd))
    if draw(one_in(3)):
        labels = labels.astype(draw(st.sampled_from(["u8", "i4", "f8", "m8[s]", "U2"])))
    options = {}
    if draw(one_in(4)):
        key = draw(st.sampled_from(["test_fraction", "num_classes"]))
        options[key] = draw(odd_values)
    if draw(one_in(3)):
        options["pixels"] = draw(st.sampled_from([True, False, None, 1, "yes"]))
    if draw(one_in(6)):
        options["class_names"] = draw(st.sampled_from([["a", "b"], "ab", ["a"] * 4, 5, [1, 2, 3]]))
    return images, labels, options


def _values_fit(images, pixels) -> bool:
    if images.dtype.kind in "iu":
        least, most = (0, 255) if pixels else (-(2**31), 2**31 - 1)
        return not images.size or (int(images.min()) >= least and int(images.max()) <= most)
    if pixels or images.dtype.kind != "f":
        return False
    return bool((np.abs(images.astype(float)) <= np.finfo(np.float32).max).all())


@kind(data_sets(), examples=40)
def arrays(case):
    images, labels, options = case
    data, why = attempt(lambda: mhd.data.arrays(images, labels, **options))
    fits = images.ndim >= 2 and images.size > 0 and labels.shape == images.shape[:1]
    pixels = options.pop("pixels", None)
    fits = fits and _values_fit(images, pixels) and labels.dtype.kind in "iu"
    if not fits or not (pixels is None or isinstance(pixels, bool)):
        assert why, case
        return False
    present = sorted({int(label) for label in labels})
    if not options:
        complete = present == list(range(len(present))) and len(present) >= 2
        counts = [int((labels == label).sum()) for label in present]
        enough = min(counts) >= 2 and len(labels) // 5 >= len(present)
        assert complete or why, case
        assert not (complete and enough and why), (case, why)
    if why:
        return False
    assert present[0] >= 0 and present[-1] < data.num_classes == len(data.class_names)
    rows = np.concatenate([data.inputs, data.test_inputs])
    tags = np.concatenate([data.labels, data.test_labels])
    assert len(rows) == len(images) and np.isfinite(rows.astype(float)).all()
    if images.dtype.kind == "f":
        assert rows.dtype == np.float32
    elif pixels is None:
        assert (rows.dtype == np.uint8) == bool(images.min() >= 0 and images.max() <= 255)
    else:
        assert rows.dtype == (np.uint8 if pixels else np.int32)

    def sorted_rows(x, y):
        flat = np.column_stack([x.reshape(len(x), -1).astype(np.float32), y])
        return flat[np.lexsort(flat.T)]

    np.testing.assert_array_equal(sorted_rows(rows, tags), sorted_rows(images, labels))
    return True


@st.composite
def layouts(draw):
    """A model's name, an image's sides and channels, and where the channels are."""
    name = draw(st.sampled_from(["mlp", "cnn", "lenet5", "resnet8", "mobilenetv2"]))
    sides = draw(st.integers(1, 100)), draw(st.integers(1, 100))
    channels = draw(st.sampled_from([1, 2, 3, 3, 4, 13]))
    return name, sides, channels, draw(st.sampled_from(["last", "first", "none"]))


@kind(layouts(), examples=60)
def image_layouts(case):
    name, sides, channels, where = case
    shapes = {"last": (*sides, channels), "first": (channels, *sides), "none": sides}
    _, why = attempt(lambda: build_backbone(name, None, shapes[where]))
    least = 4 if name == "cnn" else 1
    comparable = min(sides) > 4 and max(sides) <= 4 * min(sides)
    if name == "mlp":
        assert why is None
    elif where == "last" and channels <= 4:
        assert (why is None) == (min(sides) >= least), (case, why)
    elif where == "first" and channels <= 4 and comparable:
        assert "moveaxis" in why, (case, why)
    elif where == "none":
        assert "images[..., None]" in why, (case, why)
    return why is None


nested = st.recursive(
    odd_values,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=2)
    ),
    max_leaves=6,
)
ODD_PATHS = ["~nobody/x", "./" + "a" * 300, "a" * 300, "a\0.npz", "./a\0", "..", "/dev/null"]


@kind(
    st.one_of(
        nested.map(lambda x: (x, x)),
        st.tuples(odd_values, odd_values),
        odd_values,
        st.text(max_size=20),
        st.sampled_from(ODD_PATHS),
    )
)
def anything_as_data(given):
    with scratch():
        _, why = attempt(lambda: mhd.data.load(given))
    return why is None


@st.composite
def archives(draw):
    """Names of arrays in a file, one of which may hold objects, and how the file is damaged."""
    names = draw(st.sampled_from([("images", "labels"), ("x_train", "y_train")]))
    if draw(one_in(6)):
        names = draw(st.sampled_from([("images",), ("pictures", "tags"), ()]))
    others = [(), (), ("class_names",), ("note",), ("test_images", "test_labels")]
    more = draw(st.sampled_from(others))
    pickled = draw(st.sampled_from([None] * 9 + ["images", "labels", "x_train"]))
    return names + more, pickled, draw(st.sampled_from([".npz"] * 9 + [".npy"])), draw(damages())


@kind(archives())
def npz_files(case):
    names, pickled, ending, damage = case
    parts = {
        "images": np.ones((20, 4), np.float32),
        "labels": np.arange(20) % 2,
        "class_names": np.array(["a", "b"]),
    }
    aliases = {"x_train": "images", "y_train": "labels", "pictures": "images", "tags": "labels"}
    aliases |= {"test_images": "images", "test_labels": "labels", "note": "class_names"}
    content = {name: parts[aliases.get(name, name)] for name in names}
    if pickled in content:
        content[pickled] = np.array([Trap()] * 20)
    with scratch():
        path = pathlib.Path("data.npz")
        file = io.BytesIO()
        np.savez(file, **content) if ending == ".npz" else np.save(file, parts["images"])
        path.write_bytes(damage(file.getvalue()))
        whole = path.read_bytes() == file.getvalue()
        data, why = attempt(lambda: mhd.data.load(path))
    assert Trap.sprung == 0
    if whole:
        named = {"images", "labels"} <= set(names) or {"x_train", "y_train"} <= set(names)
        mixed = {"x_train", "test_images"} <= set(names)  # of both spellings
        fits = named and not mixed and pickled not in content
        assert (why is None) == (fits and ending == ".npz"), (case, why)
    if why is None:
        assert data.num_classes == 2 and len(data.labels) + len(data.test_labels) in (20, 40)
    return why is None


CELLS = ["0.5", "-3", "1e400", "nan", "", "x", '"a,b"', '"', "ä", "\t", "true", " 7 ", "1_0", "a,b"]


@st.composite
def text_tables(draw):
    """Rows of a table with columns x, n and y, some of them odd; options; and a damage."""
    rows = [[f"{i / 2}", f"{i % 3}", "ab"[i % 2]] for i in range(30)]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        rows[draw(st.integers(0, 29))][draw(st.integers(0, 2))] = draw(st.sampled_from(CELLS))
    header = draw(st.sampled_from([["x", "n", "y"]] * 6 + [["x", "x", "y"], ["", "n", "y"], ["y"]]))
    options = {"label": draw(st.sampled_from(["y"] * 6 + ["n", "z", None]))}
    for name, known in (("categories", "one_hot"), ("missing", "mean"), ("owners", "n")):
        if draw(one_in(3)):
            options[name] = draw(st.sampled_from([known, known, known, known, known, "none"]))
    if draw(one_in(4)):
        options["text"] = draw(st.sampled_from(["y", "n", "x", "z"]))
    return [header, *rows], options, draw(damages())


@kind(text_tables())
def tables_of_text(case):
    rows, options, damage = case
    content = "\n".join(map(",".join, rows)).encode()
    with scratch():
        pathlib.Path("t.csv").write_bytes(damage(content))
        whole = pathlib.Path("t.csv").read_bytes() == content
        data, why = attempt(lambda: mhd.data.load("t.csv", **options))
    plain = all(cell not in CELLS for row in rows[1:] for cell in row if cell != "0.5")
    if whole and plain and rows[0] == ["x", "n", "y"] and options == {"label": "y"}:
        assert why is None, (case, why)
    if why:
        return False
    found = np.concatenate([data.inputs, data.test_inputs])
    if "text" in options:
        assert found.dtype == np.int32 and 0 <= found.min() <= found.max() < data.vocabulary_size
        return True
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert len(data.feature_names) == found.shape[1] and len(data.class_names) >= 2
    if whole:
        assert len(found) == 30 and options["label"] in rows[0]
    shown = np.asarray(data.preparation(data.inputs))
    np.testing.assert_allclose(shown.mean(axis=0), 0, atol=1e-3)
    return True


SPLITS = [("train", "test"), ("Train", "VAL"), ("training", "valid"), ("train", "dev")]
ODD_SPLITS = [("trn", "test"), ("train", "other"), ("train", "Training", "test")]
LEFT_BEHIND = ["__MACOSX/a/0.png", ".git/0.png", "Thumbs.db", "desktop.ini", "readme.md"]


@st.composite
def image_folders(draw):
    """Files by path, and options."""
    files = {}
    splits = draw(st.sampled_from([("",), ("",), ("train",), *ODD_SPLITS, *SPLITS]))
    for split in splits:
        classes = ("a", "b")
        if draw(one_in(6)):
            classes = draw(st.sampled_from([("a", "b", "ü"), ("a",), ()]))
        for name in classes:
            for i in range(1 if draw(one_in(20)) else 5):
                side = 5 if draw(one_in(40)) else 4
                mode, ending, damage = "RGB", ".png", None
                if draw(one_in(20)):
                    mode = draw(st.sampled_from(["L", "P", "RGBA", "1", "I;16", "F"]))
                    ending = draw(st.sampled_from([".bmp", ".tiff", ".txt", ".PNG", ".heic", ""]))
                    damage = draw(damages())
                files[str(pathlib.PurePath(split, name, f"{i}{ending}"))] = (side, mode, damage)
    sizes, channels = [3, 1], [1, 3]
    if draw(one_in(5)):
        sizes, channels = [0, -1, 2**20, 1.5, "8"], [2, "rgb"]
    options = {
        "image_size": draw(st.sampled_from([None, *sizes])),
        "channels": draw(st.sampled_from([None, *channels])),
        "in_memory": draw(st.sampled_from([None, True, False])),
    }
    spoilt = draw(st.sampled_from([None] * 8 + ["link", "fifo", "folder", "bytes"]))
    for name in draw(st.lists(st.sampled_from(LEFT_BEHIND), max_size=2, unique=True)):
        files[name] = (4, "RGB", None)
    return files, {k: v for k, v in options.items() if v is not None}, spoilt, splits


@kind(image_folders())
def folders_of_images(case):
    files, options, spoil, splits = case
    kept = {name: how for name, how in files.items() if name not in LEFT_BEHIND}
    with scratch() as root:
        top = root / "images"
        top.mkdir()
        for name, (side, mode, damage) in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            content = _encoded(pathlib.Path(name).suffix, side, mode)
            (top / name).write_bytes(damage(content) if damage else content)
        first = next(iter(sorted(name for name in kept if name.endswith(".png"))), None)
        if first is not None:
            _spoil(top / first, spoil)

        def read():
            data = mhd.data.load(top, **options)
            return data, np.asarray(data.inputs[np.arange(len(data.labels))])

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found, why = attempt(read)
    alike = {(side, mode, damage) for side, mode, damage in kept.values()} == {(4, "RGB", None)}
    usual = len({pathlib.Path(name).parts[-2] for name in kept}) == 2 and len(kept) % 10 == 0
    usual &= splits not in ODD_SPLITS and any(name.startswith(splits[0]) for name in kept)
    usual &= options.get("image_size", 1) in (1, 3) and options.get("channels", 3) in (1, 3)
    if splits in ODD_SPLITS and {pathlib.Path(name).parts[0] for name in kept} == {*splits}:
        assert why, files
    elif alike and usual and spoil in (None, "bytes") and all(n.endswith(".png") for n in kept):
        assert why is None and not told, (files, why, told)
    if why is None:
        data, inputs = found
        assert kept and spoil in (None, "bytes") and inputs.dtype == np.uint8
        assert len(inputs) == len(data.labels)
        assert inputs.shape[-1] == options.get("channels", inputs.shape[-1])
        assert inputs.shape[1] == options.get("image_size", inputs.shape[1])
        unknown = [name for name in kept if pathlib.Path(name).suffix in (".heic", "")]
        images = [name for name in kept if pathlib.Path(name).suffix not in (".heic", "", ".txt")]
        assert len(data.labels) + len(data.test_labels) == len(images)
        assert len(told) == bool(unknown), (files, told)
        if unknown:
            assert str(told[0].message).startswith(f"{len(unknown)} files of ")
    return why is None


def _encoded(ending, side, mode):
    """A file's content: an image of that side and Pillow mode."""
    picture = Image.fromarray(np.full((side, side, 3), 99, np.uint8))
    picture = picture.convert("L").convert("I") if mode == "I;16" else picture.convert(mode)
    stream = io.BytesIO()
    try:
        picture.save(stream, {".bmp": "BMP", ".tiff": "TIFF"}.get(ending, "PNG"))
    except OSError:  # a mode that this format does not know
        picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _spoil(image, how):
    """Puts what is no image beside one, or renames it to what is no text."""
    beside = image.with_name("zz.png")
    if how == "link":
        beside.symlink_to("nowhere.png")
    elif how == "fifo":
        os.mkfifo(beside)
    elif how == "folder":
        beside.mkdir()
    elif how == "bytes":
        os.rename(image, os.fsencode(image.parent) + b"/\xff.png")
