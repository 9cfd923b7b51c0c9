"""One's own data from files: `.npz` and folders of images."""

import io
import pathlib
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

import mhd_jax as mhd
from mhd_jax.data import image_folders

rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
BY_CLASS = np.argsort(LABELS, kind="stable")


def save(path, pixels, **options):
    """One image of uint8 [H, W, C] or [H, W], or an image of Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def save_folder(root, images=COLOUR, labels=LABELS, names=("ant", "bee", "cat")):
    """A folder for each class, files named by their row, and what must be left out."""
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(root / names[label] / f"{row:02}.png", image)
    (root / names[0] / "notes.txt").write_text("no image")
    (root / names[0] / ".hidden.png").write_text("no image")
    (root / ".cache").mkdir()
    (root / "readme.md").write_text("no class")
    return root


@pytest.mark.parametrize(
    "keys", ["images labels test_images test_labels", "x_train y_train x_test y_test"]
)
def test_an_npz_file_holds_both_splits(tmp_path, keys):
    path = tmp_path / "mine.npz"
    content = (COLOUR, LABELS, COLOUR[:4], LABELS[:4])
    named = dict(zip(keys.split(), content, strict=True))
    np.savez_compressed(path, **named, class_names=["ant", "bee", "cat"], values=[1], latest=2)
    for source in (path, str(path)):
        data = mhd.data.load(source)
        np.testing.assert_array_equal(data.inputs, COLOUR)
        np.testing.assert_array_equal(data.test_inputs, COLOUR[:4])
        np.testing.assert_array_equal(data.labels, LABELS)
        np.testing.assert_array_equal(data.test_labels, LABELS[:4])
        assert data.class_names == ("ant", "bee", "cat") and data.name == "mine.npz"


def test_an_npz_file_without_a_test_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", images=COLOUR, labels=LABELS + 1)
    data = mhd.data.load("mine.npz", test_fraction=0.25, num_classes=5)
    assert len(data.labels) == 9 and sorted(data.test_labels) == [1, 2, 3]
    assert data.class_names == ("0", "1", "2", "3", "4")
    names = np.array([b"ant", b"bee", b"cat"])
    np.savez("mine.npz", images=COLOUR, labels=LABELS, class_names=names)
    assert mhd.data.load("mine.npz").class_names == ("ant", "bee", "cat")


OWN = {"images": COLOUR, "labels": LABELS}
ABC = {"class_names": list("abc")}
TRAIN = {"x_train": COLOUR, "y_train": LABELS, "x_test": COLOUR}


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (
            {"images": COLOUR, "y_train": LABELS},
            {},
            r"\(or x_train and y_train\), but holds images, y",
        ),
        ({}, {}, "but holds none"),
        (
            OWN | {"labels": LABELS.astype(object)},
            {},
            "labels in .*mine.npz .* objects instead of num",
        ),
        (OWN | {"labels": LABELS[:5]}, {}, r"labels must have shape \[12\]"),
        (
            OWN | {"labels": LABELS + 1},
            {},
            "1 … 3 and none is 0: count .*, or give num_classes if cl",
        ),
        (
            OWN | ABC | {"labels": LABELS + 1},
            {},
            "must lie in 0 … 2, but they span 1 … 3; count cl",
        ),
        (
            OWN | {"labels": LABELS * 2},
            {},
            r"0 … 4, some have no .* \(1, 3 first\); number classes",
        ),
        (
            OWN | {"test_images": COLOUR[:2], "test_labels": [0, 3]},
            {},
            r"0 … 3, some .* \(3 first\)",
        ),
        (
            OWN | ABC | {"labels": [0] * 5 + [2] + [1] * 6},
            {},
            "class c has one sample, .* at least 2",
        ),
        (
            OWN,
            {"test_fraction": 0.1},
            "cannot set aside a stratified test split: .*; change test_fr",
        ),
        (
            OWN | {"labels": [0] * 10 + [1] * 2},
            {"test_fraction": 0.8},
            "0.8 leaves class 1 no sample",
        ),
        (
            TRAIN | {"y_test": LABELS},
            {"test_fraction": 0.1},
            "a test split already; leave test_fract",
        ),
        (TRAIN, {}, "both test_images and test"),
        (OWN | ABC, {"num_classes": 4}, "num_classes is 4, but there are 3 class_names"),
        (OWN, {"image_size": 8}, "image_size cannot go with an"),
        (
            OWN | {"x_test": COLOUR, "y_test": LABELS},
            {},
            "holds x_test, y_test, which .* images and labels; call .* test_images and test_labels",
        ),
        (OWN | TRAIN, {}, "holds x_train, y_train, x_test, which would not be read"),
        (TRAIN | {"y_test": LABELS, "X_val": COLOUR}, {}, "holds X_val, .* x_test and y_test"),
        (OWN | {"testX": COLOUR}, {}, "holds testX, which would not be read"),
    ],
)
def test_what_an_npz_file_lacks_is_named(tmp_path, content, options, sentence):
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load(tmp_path / "mine.npz", **options)


def test_damaged_npz_files_are_named(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=COLOUR, labels=LABELS)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(mhd.ConfigError, match=r"mine.npz cannot be read as an .npz file"):
            mhd.data.load(path)
    flipped = bytearray(whole)
    flipped[400] ^= 255  # a pixel: the archive's checksum no longer fits
    path.write_bytes(bytes(flipped))
    with pytest.raises(mhd.ConfigError, match=r"images in .*mine.npz cannot be read .*damaged"):
        mhd.data.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
        archive.writestr("labels.npy", b"no array")
    with pytest.raises(mhd.ConfigError, match=r"images must have shape"):
        mhd.data.load(path)
    with path.open("wb") as file:
        np.save(file, COLOUR)
    with pytest.raises(mhd.ConfigError, match="holds a single array"):
        mhd.data.load(path)


def test_plain_words_are_names_and_paths_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_folder(tmp_path / "digits")
    assert mhd.data.load("digits").input_shape == (8, 8, 1)
    for path in ("./digits", "~/digits", pathlib.Path("digits"), "digits/", tmp_path / "digits"):
        data = mhd.data.load(path)
        assert data.input_shape == (6, 5, 3) and data.name == "digits"
    monkeypatch.chdir(tmp_path / "digits")
    assert mhd.data.load("./").name == "digits"


def test_names_with_a_slash_are_folders_where_one_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "my" / "images")
    assert mhd.data.load("my/images").name == "images"
    for options in ({"data_dir": tmp_path}, {"train_split": "train"}):
        with pytest.raises(mhd.ConfigError, match="my/images is not prepared in"):
            mhd.data.load("my/images", **options)
    for name in ("my", "my/imagse"):  # a plain word, and nothing of that name
        with pytest.raises(mhd.ConfigError, match=f"not prepared .*by its path, like ./{name}"):
            mhd.data.load(name)


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("./none", {}, "none does not exist; give a folder of images, an .npz file, or a table"),
        ("none.npz", {}, "none.npz does not exist"),
        ("a/b/c", {}, "a/b/c does not exist"),
        (pathlib.Path("none"), {}, "none does not exist"),
        ("my/file.txt", {}, "file.txt is none of what can be read: a folder of images, an .npz"),
        (
            "./my",
            {"data_dir": "."},
            "data_dir cannot go with a folder of images, which takes image",
        ),
        (
            "digits",
            {"image_size": 8},
            "image_size cannot go with digits, which takes test_fraction",
        ),
        ("cifar10", {"channels": 1}, "channels cannot go with a prepared data set"),
        ((COLOUR, LABELS), {"channels": 1}, "channels cannot go with arrays"),
        (((COLOUR, LABELS), (COLOUR, LABELS, LABELS)), {}, "two pairs, .* have 2 and 3 entries"),
        (mhd.data.arrays(COLOUR, LABELS), {"test_fraction": 0.5}, "which takes no options"),
    ],
)
def test_sources_and_options_that_cannot_work(source, options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "file.txt").write_text("1,2")
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load(source, **options)


def test_pixels_labels_and_names_of_a_folder(tmp_path):
    train, test = image_folders.find(save_folder(tmp_path / "own"))
    assert test is None and train.class_names == ("ant", "bee", "cat")
    assert [path.name for path in train.paths[:4]] == ["00.png", "03.png", "06.png", "09.png"]
    found = image_folders.read(tmp_path / "own")
    np.testing.assert_array_equal(found["images"], COLOUR[BY_CLASS])
    np.testing.assert_array_equal(found["labels"], LABELS[BY_CLASS])
    data = mhd.data.load(tmp_path / "own", test_fraction=0.25)
    assert data.name == "own" and data.inputs.dtype == np.uint8 and len(data.test_labels) == 3
    for inputs, labels in ((data.inputs, data.labels), (data.test_inputs, data.test_labels)):
        for pixels, label in zip(inputs, labels, strict=True):
            (row,) = np.flatnonzero((pixels == COLOUR).all(axis=(1, 2, 3)))
            assert label == LABELS[row]


def test_many_files_keep_their_order(tmp_path):
    images = np.arange(150, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    save_folder(tmp_path / "own", images, np.arange(150) // 50)
    found = image_folders.read(tmp_path / "own")
    np.testing.assert_array_equal(found["images"], images[..., None])
    np.testing.assert_array_equal(found["labels"], np.arange(150) // 50)


@pytest.mark.parametrize(
    ("train", "beside"),
    [
        *(("train", name) for name in ("test", "val", "valid", "validation", "dev")),
        *(("Train", "Test"), ("training", "testing"), ("TRAINING", "Val")),
    ],
)
@pytest.mark.filterwarnings("error")
def test_train_and_test_folders(tmp_path, train, beside):
    save_folder(tmp_path / train, COLOUR[:9], LABELS[:9])
    save_folder(tmp_path / beside, COLOUR[9:], LABELS[9:])
    data = mhd.data.load(tmp_path)
    assert len(data.labels) == 9 and data.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(data.test_inputs, COLOUR[9:])
    np.testing.assert_array_equal(data.test_labels, LABELS[9:])


def test_test_comes_before_other_splits(tmp_path):
    for name in ("val", "test", "dev", "train"):
        count = 6 if name == "test" else 12
        save_folder(tmp_path / name, COLOUR[:count], LABELS[:count])
    assert len(mhd.data.load(tmp_path).test_labels) == 6


@pytest.mark.filterwarnings("error")
def test_what_systems_leave_behind_is_passed_over(tmp_path):
    save_folder(tmp_path)
    save(tmp_path / "__MACOSX" / "ant" / "._00.png", COLOUR[0])
    for name in ("Thumbs.db", "ant/desktop.ini", "ant/Thumbs.db", "bee/._1.png", "bee/labels.xml"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "cat" / "@eaDir").mkdir()
    assert len(mhd.data.load(tmp_path, test_fraction=0.25).labels) == 9


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".apng", ".dib", ".pbm"])
@pytest.mark.filterwarnings("error")
def test_images_of_rarer_endings_count(tmp_path, ending):
    save_folder(tmp_path)
    save(tmp_path / "ant" / f"99{ending}", COLOUR[0], format="PNG")
    assert len(image_folders.read(tmp_path)["labels"]) == 13


@pytest.mark.parametrize("splits", [[""], ["train", "test"]])
def test_files_that_are_left_out_are_told_of_once(tmp_path, splits):
    for split in splits:
        save_folder(tmp_path / split)
    for name in ("ant/1.heic", "bee/00", "cat/x.npy"):
        (tmp_path / splits[-1] / name).write_bytes(b"")
    save(tmp_path / "loose.png", COLOUR[0])
    with pytest.warns(UserWarning, match="^4 files of .* are left out, .* for one: ") as told:
        mhd.data.load(tmp_path)
    assert len(told) == 1


def test_train_may_stand_alone_or_be_a_class(tmp_path):
    save_folder(tmp_path / "alone" / "train")
    assert len(mhd.data.load(tmp_path / "alone").labels) == 9
    save_folder(tmp_path / "vehicles", names=("bus", "car", "train"))
    assert mhd.data.load(tmp_path / "vehicles").class_names == ("bus", "car", "train")


def test_grey_folders_have_one_channel_unless_one_image_is_in_colour(tmp_path):
    grey = COLOUR[..., 0]
    save_folder(tmp_path / "grey", grey)
    found = image_folders.read(tmp_path / "grey")["images"]
    np.testing.assert_array_equal(found[..., 0], grey[BY_CLASS])
    assert mhd.data.load(tmp_path / "grey").input_shape == (6, 5, 1)
    in_colour = mhd.data.load(tmp_path / "grey", channels=3).inputs
    assert in_colour.shape == (9, 6, 5, 3) and (in_colour == in_colour[..., :1]).all()
    save(tmp_path / "grey" / "cat" / "99.png", COLOUR[0])
    assert mhd.data.load(tmp_path / "grey").input_shape == (6, 5, 3)
    assert mhd.data.load(tmp_path / "grey", channels=1).input_shape == (6, 5, 1)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 90, [90, 90, 90]),
        ("P", 1, [200, 10, 20]),
        ("RGBA", (200, 10, 20, 0), [200, 10, 20]),
        ("CMYK", (200, 10, 20, 0), [55, 245, 235]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    image, options = Image.new(mode, (3, 2), colour), {}
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 10, 20])
        options = {"transparency": b"\x00\x80"}
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image, **options)
    with warnings.catch_warnings(action="error"):
        pixels = image_folders.decode(path)
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), expected))


def test_images_are_turned_upright(tmp_path):
    upright = COLOUR[0]
    for orientation, stored in (
        (3, upright[::-1, ::-1]),
        (6, np.rot90(upright)),  # to be turned clockwise
        (8, np.rot90(upright, -1)),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / f"{orientation}.png", np.ascontiguousarray(stored), exif=exif)
        np.testing.assert_array_equal(image_folders.decode(path), upright)


def test_resizing_keeps_the_centre(tmp_path):
    """A ramp stays a ramp: the value at a pixel is that of the place it comes from."""
    height, width, size = 40, 100, 20
    ramp = np.broadcast_to(2 * np.arange(width, dtype=np.uint8), (height, width))
    # Scale 2; the centre 40 × 40 is columns 30 … 69, and pixel i covers columns 30 + 2 i and one more.
    expected = 2 * (30 + 2 * np.arange(size) + 0.5)
    wide = image_folders.decode(save(tmp_path / "wide.png", ramp), size, 1)
    assert wide.shape == (size, size, 1)
    np.testing.assert_allclose(wide[..., 0], np.tile(expected, (size, 1)), atol=1)
    tall = image_folders.decode(save(tmp_path / "tall.png", np.ascontiguousarray(ramp.T)), size, 1)
    np.testing.assert_array_equal(tall[..., 0], wide[..., 0].T)
    # Enlarged: linear between the centres of pixels.
    small = np.array([[0, 100], [0, 100]], np.uint8)
    large = image_folders.decode(save(tmp_path / "small.png", small), 4, 1)
    np.testing.assert_allclose(large[..., 0], np.tile([0, 25, 75, 100], (4, 1)), atol=1)
    # Reduced: antialiased, so that a checkerboard turns to its mean, and a square one stays itself.
    board = np.indices((32, 32)).sum(axis=0).astype(np.uint8) % 2 * 200
    path = save(tmp_path / "board.png", board)
    assert np.abs(image_folders.decode(path, 8, 1).astype(int) - 100).max() <= 10
    np.testing.assert_array_equal(image_folders.decode(path, 32, 1)[..., 0], board)


def test_unlike_sizes_need_image_size(tmp_path):
    save_folder(tmp_path / "own")
    save(tmp_path / "own" / "bee" / "05.png", COLOUR[0, :, :4])
    save(tmp_path / "own" / "cat" / "02.png", COLOUR[0, :3])
    sentence = "bee/05.png has 6 × 4 pixels, but .*ant/00.png has 6 × 5; give image_size"
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load(tmp_path / "own")
    assert mhd.data.load(tmp_path / "own", image_size=7).input_shape == (7, 7, 3)


def test_damaged_images_are_named(tmp_path):
    save_folder(tmp_path / "own")
    photo = io.BytesIO()
    Image.fromarray(np.tile(COLOUR[0], (20, 20, 1))).save(photo, "JPEG")
    whole = photo.getvalue()
    path = tmp_path / "own" / "bee" / "50.jpg"
    for damaged in (whole[: len(whole) // 2], whole[:100], b"no image", b""):
        path.write_bytes(damaged)
        with pytest.raises(mhd.ConfigError, match=r"bee/50.jpg cannot be read as an image"):
            mhd.data.load(tmp_path / "own", image_size=6)
    path.unlink()
    drawing = tmp_path / "own" / "cat" / "02.png"
    drawing.write_bytes(drawing.read_bytes()[:-40])
    with pytest.raises(mhd.ConfigError, match=r"cat/02.png cannot be read as an image"):
        mhd.data.load(tmp_path / "own")


def test_more_than_8_bits_are_refused(tmp_path):
    path = save(tmp_path / "a.png", np.full((2, 2), 3000, np.uint16))
    with pytest.raises(mhd.ConfigError, match=r"a.png has pixels of more than 8 bits \(mode I"):
        image_folders.decode(path)


def test_folders_of_another_form_are_named(tmp_path):
    def refused(sentence, folder=tmp_path / "own", **options):
        with pytest.raises(mhd.ConfigError, match=sentence):
            mhd.data.load(folder, **options)

    (tmp_path / "own").mkdir()
    refused("own has no folders; it needs one for each class")
    save_folder(tmp_path / "own")
    refused("image_size must be at least 1, not 0", image_size=0)
    refused("channels must be 1", channels=2)
    (tmp_path / "own" / "dog").mkdir()
    refused("the class folder .*own/dog holds no image; fill or remove it")
    (tmp_path / "own" / "dog" / "1.heic").write_bytes(b"")
    refused(r"own/dog holds no image, but 1.heic; fill or remove it \(images end in .apng, ")
    save_folder(tmp_path / "set" / "trainset")
    save_folder(tmp_path / "set" / "testset")
    refused("set/testset has folders of its own .* name the splits train", tmp_path / "set")
    save_folder(tmp_path / "both" / "train")
    save_folder(tmp_path / "both" / "Training")
    save_folder(tmp_path / "both" / "test")
    refused("both has train and Training; leave one to train on", tmp_path / "both")
    save(tmp_path / "own" / "dog" / "old" / "1.png", COLOUR[0])
    refused(
        r"own/dog has folders of its own \(old\); put .* name the splits train \(or training\) and test "
        r"\(or testing, val, valid, validation, dev\)"
    )
    save_folder(tmp_path / "two" / "train")
    save_folder(tmp_path / "two" / "test", names=("ant", "bee", "dog"))
    refused("two/test lacks the class cat; both splits", tmp_path / "two")
    save_folder(tmp_path / "more" / "train", LABELS[:2, None, None].astype(np.uint8), [0, 1])
    save_folder(tmp_path / "more" / "val")
    refused("more/train lacks the class cat", tmp_path / "more")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    save(tmp_path / "flat" / "test" / "1.png", COLOUR[0])
    refused("flat/train has no folders", tmp_path / "flat")


@pytest.mark.slow
def test_clients_learn_from_a_folder(tmp_path):
    images = rng.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    data = mhd.data.load(save_folder(tmp_path / "own", images, np.arange(40) % 3))
    clients = mhd.make_clients(data, 2, "mlp")
    settings = {"steps": 2, "batch_size": 4, "public_batch_size": 2}
    result = mhd.simulate("complete", clients, "naive", **settings)
    assert np.isfinite(result.history[-1]["train"]["loss"])
    assert result.summary["settings"]["clients"]["dataset"] == "own"
