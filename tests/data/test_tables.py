"""Tables as data sets: text files, Parquet, folders of Hugging Face's library."""

import csv
import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image

import mhd_jax as mhd

pa = pytest.importorskip("pyarrow")
COLOURS = ("red", "blue", "green")
rng = np.random.default_rng(0)
SIZE = 60
AGE, DOSE = rng.integers(20, 90, SIZE), rng.normal(5000, 300, SIZE)
COLOUR = np.array(COLOURS)[rng.integers(0, 3, SIZE)]
WARD = np.array(["west", "east", "north"])[np.arange(SIZE) % 3]
OUTCOME = np.array(["well", "ill"])[np.arange(SIZE) // 2 % 2]
COLUMNS = {"age": AGE, "dose": DOSE, "outcome": OUTCOME}


def write(path, delimiter=",", encoding="utf-8", **columns):
    lines = [delimiter.join(columns)]
    for row in zip(*columns.values(), strict=True):
        lines.append(delimiter.join(map(str, row)))
    path.write_bytes("\r\n".join(lines).encode(encoding))
    return path


def split_rows(data):
    """The rows of training and test samples, which are told by their doses."""
    place = {np.float32(dose): row for row, dose in enumerate(DOSE)}
    return (
        np.array([place[dose] for dose in inputs[:, 1]])
        for inputs in (data.inputs, data.test_inputs)
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("a.CSV", {"encoding": "utf-8-sig"}),
        ("a.tsv", {"delimiter": "\t", "encoding": "utf-16"}),
    ],
)
def test_rows_labels_and_class_names_of_a_text_file(tmp_path, name, options):
    path = write(tmp_path / name, **options, **COLUMNS)
    data = mhd.data.load(path, label="outcome")
    assert data.name == name and data.feature_names == ("age", "dose")
    assert data.class_names == ("ill", "well")
    train, test = split_rows(data)
    assert sorted([*train, *test]) == list(range(SIZE)) and len(test) == 12
    for rows, inputs, labels in (
        (train, data.inputs, data.labels),
        (test, data.test_inputs, data.test_labels),
    ):
        np.testing.assert_array_equal(inputs[:, 0], AGE[rows])
        np.testing.assert_array_equal(np.array(data.class_names)[labels], OUTCOME[rows])
    own = np.stack([AGE, DOSE], axis=1)
    mean, std = own[train].mean(axis=0), own[train].std(axis=0)
    prepared = np.asarray(data.preparation(data.test_inputs))
    np.testing.assert_allclose(prepared, (own[test] - mean) / std, atol=1e-4)
    plain = mhd.data.load(path, label="outcome", standardize=False)
    np.testing.assert_array_equal(plain.preparation(plain.inputs), data.inputs)
    assert mhd.data.load(path, label="outcome", test_fraction=0.5).labels.size == 30


def test_quotes_spaces_empty_lines_and_truths(tmp_path):
    labels = ['"said ""x"""', '"a, b"']
    rows = [f"{labels[i % 2]}, {i} ,{i % 3 == 0}\n\n" for i in range(20)]
    (tmp_path / "q.csv").write_text('"the label",n,t\n' + "".join(rows))
    data = mhd.data.load(tmp_path / "q.csv", label="the label")
    assert data.class_names == ("a, b", 'said "x"') and data.feature_names == ("n", "t")
    np.testing.assert_array_equal(data.inputs[:, 0] % 2 == 0, data.labels)
    np.testing.assert_array_equal(data.inputs[:, 0] % 3 == 0, data.inputs[:, 1])


def test_a_field_may_be_long(tmp_path):
    path, limit = tmp_path / "long.csv", csv.field_size_limit()
    notes = ["x" * (limit + 1), *["short"] * (SIZE - 1)]
    data = mhd.data.load(write(path, **COLUMNS, note=notes), label="outcome", features="dose")
    assert data.inputs.shape == (48, 1) and csv.field_size_limit() == limit


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    path = write(tmp_path / "n.csv", x=DOSE, y=np.array([-5, 10, 9])[np.arange(SIZE) % 3])
    assert mhd.data.load(path, label="y").class_names == ("-5", "9", "10")


@pytest.mark.parametrize(
    "codes",
    [("007", "7", "0070"), ("1e5", "100000", "2"), ("9007199254740993", "9007199254740992", "1")],
)
def test_codes_of_one_number_stay_apart_as_labels_and_owners(tmp_path, codes):
    code = np.array(codes)[np.arange(SIZE) % 3]
    path = write(tmp_path / "c.csv", dose=DOSE, code=code, owner=code)
    data = mhd.data.load(path, label="code", owners="owner", features="dose")
    assert data.class_names == data.owners.names == tuple(sorted(codes))
    np.testing.assert_array_equal(data.labels, data.owners.of_training)
    split = np.array(["train", "test"])[np.arange(SIZE) // 3 % 2]
    path = write(tmp_path / "s.csv", dose=DOSE, code=code, split=split)
    data = mhd.data.load(path, label="code", features="dose")
    names = np.array(data.class_names)
    np.testing.assert_array_equal(names[data.test_labels], code[split == "test"])
    features = mhd.data.load(write(tmp_path / "f.csv", code=code, y=OUTCOME), label="y")
    assert set(features.inputs.ravel()) == {np.float32(each) for each in codes}
    numbers = mhd.data.load(path, label="code", features="dose", regression=True)
    assert set(numbers.numbers.train.ravel()) == {float(each) for each in codes}


def test_labels_written_as_numbers_are_numbers(tmp_path):
    path = write(tmp_path / "n.csv", x=DOSE, y=np.array(["9.0", "10.0", "10"])[np.arange(SIZE) % 3])
    assert mhd.data.load(path, label="y").class_names == ("9", "10")
    path = write(tmp_path / "t.csv", x=DOSE, y=np.array(["True", "false"])[np.arange(SIZE) % 2])
    assert mhd.data.load(path, label="y").class_names == ("0", "1")


TIMES = 1.7e9 + rng.permutation(SIZE)


@pytest.mark.parametrize(
    ("numbers", "is_coarse"),
    [
        (TIMES, True),
        (-TIMES, True),
        (TIMES - 1.7e9, False),
        (TIMES * 128, True),
        (TIMES.astype(np.float32).astype(np.float64), False),  # as exact as float32 is
        (1.7e9 + 86400 * np.arange(SIZE), False),
        (np.append(TIMES[:-1], 0), False),
        (np.full(SIZE, 0.1), False),
        (0.1 + 1e-17 * np.arange(SIZE) % 3e-17, False),
    ],
)
def test_numbers_that_float32_does_not_tell_apart_are_refused(tmp_path, numbers, is_coarse):
    path = write(tmp_path / "t.csv", age=AGE, time=map(repr, numbers.tolist()), outcome=OUTCOME)
    rows, y = np.stack([AGE, numbers], axis=1), np.arange(SIZE) % 2
    for make, sentence in (
        (lambda: mhd.data.load(path, label="outcome"), "t.csv: the column time holds numbers that"),
        (lambda: mhd.data.arrays(rows, y), "images hold numbers in column 1 that .* an offset"),
        (lambda: mhd.data.arrays({"a": numbers}, y), r"images\['a'\] hold numbers that"),
    ):
        if is_coarse:
            with pytest.raises(mhd.ConfigError, match=sentence):
                make()
        else:
            make()
    data = mhd.data.arrays(np.stack([AGE, np.append(TIMES[:-1], 0)], axis=1), y, rows, y)
    assert len(data.test_labels) == SIZE  # what is only evaluated may be of a narrow range


def test_missing_numbers_become_the_mean_of_training_samples(tmp_path):
    ages = [("NA", "", "nan", "?")[i % 4] if i % 5 == 0 else age for i, age in enumerate(AGE)]
    path = write(tmp_path / "m.csv", **COLUMNS | {"age": ages})
    sentence = r"age has none in 12 of 60 rows \(line 2 first\); .* give missing='mean'"
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load(path, label="outcome")
    data = mhd.data.load(path, label="outcome", missing="mean")
    train, test = split_rows(data)
    mean = AGE[train][train % 5 > 0].mean()
    for rows, inputs in ((train, data.inputs), (test, data.test_inputs)):
        np.testing.assert_allclose(inputs[:, 0], np.where(rows % 5, AGE[rows], mean), rtol=1e-6)
    assert mhd.data.load(path, label="outcome", features="dose").feature_names == ("dose",)


def test_texts_become_features_of_their_own_by_choice(tmp_path):
    colours = [*COLOUR[:-1], ""]
    path = write(tmp_path / "c.csv", colour=colours, dose=DOSE, outcome=OUTCOME)
    options = {"label": "outcome", "categories": "one_hot"}
    with pytest.raises(mhd.ConfigError, match=r"colour has none in 1 of 60 rows \(line 61 first\)"):
        mhd.data.load(path, **options)
    data = mhd.data.load(path, **options, missing="mean", features=["dose", "colour"])
    assert data.feature_names == ("dose", "colour=blue", "colour=green", "colour=red")
    place = {np.float32(dose): row for row, dose in enumerate(DOSE)}
    train = np.array([place[dose] for dose in data.inputs[:, 0]])
    names = np.array(sorted(COLOURS))
    shares = (COLOUR[train[train < SIZE - 1], None] == names).mean(axis=0)
    for inputs in (data.inputs, data.test_inputs):
        rows = np.array([place[dose] for dose in inputs[:, 0]])
        expected = np.where((rows == SIZE - 1)[:, None], shares, COLOUR[rows, None] == names)
        np.testing.assert_allclose(inputs[:, 1:], expected, rtol=1e-6)


def test_a_column_determines_the_test_split(tmp_path):
    """Nothing is learnt from test samples: neither means nor texts."""
    split = np.array(["train", "Test", "val"])[np.arange(SIZE) % 3]
    ages = np.where(split == "train", 30, 1e6).astype(object)
    ages[0] = ""
    colours = np.where(split == "train", "red", "blue")
    columns = {"split": split, "age": ages, "colour": colours, "outcome": OUTCOME}
    path = write(tmp_path / "s.csv", **columns)
    options = {"label": "outcome", "missing": "mean", "categories": "one_hot"}
    data = mhd.data.load(path, **options)
    assert data.feature_names == ("age", "colour=red")
    np.testing.assert_array_equal(data.inputs, [[30, 1]] * 20)
    np.testing.assert_array_equal(data.test_inputs, [[1e6, 0]] * 20)
    shown = np.asarray(data.preparation(data.test_inputs))  # a column of one value is shifted only
    np.testing.assert_allclose(shown, [[1e6 - 30, -1]] * 20)
    with pytest.raises(mhd.ConfigError, match="a test split already; leave test_fraction out"):
        mhd.data.load(path, **options, test_fraction=0.5)


def test_rows_of_unknown_splits_are_told_of(tmp_path):
    split = np.array(["train", "val", "test", "holdout", "", "training"])[np.arange(SIZE) % 6]
    path = write(tmp_path / "s.csv", **COLUMNS, split=split)
    sentence = r"^s.csv: 30 of 60 rows are left out, whose split is holdout, none, training; call"
    with pytest.warns(UserWarning, match=sentence):
        data = mhd.data.load(path, label="outcome")
    assert len(data.labels) == len(data.test_labels) == 10
    path = write(tmp_path / "k.csv", **COLUMNS, split=np.resize(["train", "val", "test"], SIZE))
    with warnings.catch_warnings(action="error"):
        mhd.data.load(path, label="outcome")


SOUND = [f"{i},{'ab'[i % 2]}" for i in range(20)]
LONG = [f"t{i},{'ab'[i % 2]}" for i in range(900)]


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
        ([], {}, "t.csv is empty; its first line must name the columns"),
        (["x,y"], {}, "t.csv: there are no rows below"),
        (["x,x", *SOUND], {}, "two columns are called 'x'; rename one"),
        ([",y", *SOUND], {}, "column 1 has no name; .* index=False"),
        (["x;y", "1;2"], {}, "to separate columns by semicolons, but a .csv file does by commas"),
        (["x,y", *SOUND, "1"], {}, "t.csv, line 22: 1 fields, but the first line names 2"),
        (["x,y", '1,"a'], {}, "t.csv, line 2: .*; quote fields that hold quotes"),
        (["x,y", "1,\udce4"], {}, "line 2: this is not UTF-8; save the file as UTF-8"),
        (["x,y", *SOUND], {"label": None}, "give label, .*; the columns are x, y"),
        (["x,yes", *SOUND], {}, "no column 'y' for label; the columns are x, yes"),
        (["x,target", *SOUND], {"label": "traget"}, "did you mean target?"),
        (["x,y", *SOUND, "3,"], {}, "the label y is missing in 1 of 21 rows .line 22 first"),
        (["x,y", "1,a", "2,a"], {}, "the label y is a in every row; .* at least 2 classes"),
        (
            ["y,x", "1,a", "1.5,b"],
            {},
            "the label y is 1.5 in line 3, but classes .*give regression=True",
        ),
        (["x,y", *SOUND, "1e3x,a"], {}, "column x holds texts, like '1e3x' in line 22; turn"),
        (["x,y", *SOUND, "1_0,a"], {}, "holds texts, like '1_0' in line 22"),
        (["x,y", *SOUND, "-inf,a"], {}, "column x holds -inf in line 22, beyond float32"),
        (["x,y", *SOUND, "1e39,a"], {}, r"column x holds 1e\+39 in line 22, beyond float32"),
        (["x,y", *SOUND], {"features": "x,y"}, "the column y is the label, and no feature"),
        (["x,y", *SOUND], {"features": ["z"]}, "no column 'z' for features"),
        (["y", "a", "b"], {}, "no column is left for features"),
        (["x,y", *SOUND], {"missing": "median"}, "missing must be mean, or be left out, not 'med"),
        (["x,y", *LONG], {"categories": "one_hot"}, "720 different texts, but .* at most 256"),
        (
            ["x,n,y"] + [f",{r}" for r in SOUND],
            {"missing": "mean"},
            "no training sample .* column x",
        ),
        (
            ["x,y", *SOUND],
            {"num_classes": 2},
            "num_classes cannot go with a table",
        ),
        (["x,y", *SOUND], {"image_size": 3}, "image_size and channels are for columns of images"),
        (["x,y", *SOUND], {"standardize": "yes"}, "standardize must be True or False"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_a_sentence(tmp_path, lines, options, sentence):
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with pytest.raises(mhd.ConfigError, match=sentence) as refused:
        mhd.data.load(path, **{"label": "y"} | options)
    assert "\n" not in str(refused.value)


def test_owners_by_column_array_list_and_dict_are_the_clients(tmp_path):
    path = write(tmp_path / "o.csv", **COLUMNS, ward=WARD)
    samples = np.stack([AGE, DOSE], axis=1), np.unique(OUTCOME, return_inverse=True)[1]
    rows = {name: np.flatnonzero(name == WARD) for name in ("west", "east", "north")}
    for data in (
        mhd.data.load(path, label="outcome", owners="ward"),
        *(mhd.data.load(samples, owners=owners) for owners in (WARD, WARD.tolist(), rows)),
    ):
        train, test = split_rows(data)
        assert data.owners.names == ("east", "north", "west")
        np.testing.assert_array_equal(
            np.array(data.owners.names)[data.owners.of_training], WARD[train]
        )
        clients = mhd.make_clients(data, seed=3)
        assert clients.num_clients == 3 and len(clients.public) == 5
        owned = clients.owner >= 0
        np.testing.assert_array_equal(owned, ~np.isin(np.arange(48), clients.public))
        np.testing.assert_array_equal(clients.owner[owned], data.owners.of_training[owned])
        np.testing.assert_array_equal(np.array(data.owners.names)[clients.test_owner], WARD[test])
        assert clients.settings["partition"] == "owners"
        other = mhd.make_clients(data, 4, partition="iid")
        assert other.num_clients == 4 and other.test_owner is None
    with pytest.raises(
        mhd.ConfigError, match=r"3 owners \(east, north, west\), .*num_clients is 8"
    ):
        mhd.make_clients(data, 8)


X, Y = np.zeros((6, 2), np.float32), np.arange(6) % 2


@pytest.mark.parametrize(
    ("owners", "options", "sentence"),
    [
        (["a"] * 5, {}, "the owner of each of the 6 samples, a whole number or a text"),
        (np.zeros(6), {}, "but hold float64"),
        ({"a": [0, 1, 2], "b": [2, 3]}, {}, "owners give b the row 2; rows are"),
        ({"a": [0, 1, 2], "b": [4, 5]}, {}, "owners leave sample 3 to nobody"),
        ("abcdef", {"test_fraction": 0.5}, "takes every sample of the owner [a-f]; leave that "),
        ("aabbcc", {"test_owners": "aa"}, "test_owners are those of a test split"),
        (None, {"test_owners": "aa"}, "test_owners need owners of the training samples"),
    ],
)
def test_owners_that_cannot_be_are_refused(owners, options, sentence):
    given = {name: list(v) if isinstance(v, str) else v for name, v in options.items()}
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.arrays(X, Y, owners=list(owners) if isinstance(owners, str) else owners, **given)


def test_test_owners_of_a_given_split():
    data = mhd.data.arrays(X, Y, X[:3], Y[:3], owners=[7, 7, 9, 9, 7, 9], test_owners=[9, 8, 7])
    assert data.owners.names == ("7", "9") and data.owners.of_test.tolist() == [1, -1, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, str])
def test_test_owners_of_another_type_are_found(dtype):
    owners, of_test = np.arange(12), np.array([11, 2, 10, 99]).astype(dtype)
    x, y = np.zeros((12, 2), np.float32), np.arange(12) % 2
    for given in (owners, owners.astype(str)):
        data = mhd.data.arrays(x, y, x[:4], y[:4], owners=given, test_owners=of_test)
        names = [data.owners.names[i] if i >= 0 else None for i in data.owners.of_test]
        assert names == ["11", "2", "10", None]


def test_public_tables_have_the_same_features(tmp_path):
    paths = [
        write(tmp_path / f"{name}.csv", **columns, outcome=OUTCOME)
        for name, columns in {
            "a": {"age": AGE, "dose": DOSE},
            "b": {"dose": DOSE + 1, "age": AGE},
            "c": {"age": AGE + 1, "dose": DOSE},
        }.items()
    ]
    data, swapped, public = (mhd.data.load(path, label="outcome") for path in paths)
    assert mhd.make_clients(data, 2, public=public).num_public == 48
    with pytest.raises(mhd.ConfigError, match=r"b.csv has the feature dose where a.csv has age"):
        mhd.make_clients(data, 2, public=swapped)


def encoded(number):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def arrow_table(columns, features=None):
    """An Arrow table, with the names of classes as Hugging Face's library notes them."""
    table = pa.table(columns)
    if features is None:
        return table
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def save_dataset(folder, table, parts=2):
    """Writes a folder as `save_to_disk` does, whose format was read off one of version 5.2."""
    folder.mkdir(parents=True)
    files = [{"filename": f"data-{i:05}-of-{parts:05}.arrow"} for i in range(parts)]
    bounds = np.linspace(0, len(table), parts + 1).astype(int)
    for file, start, end in zip(files, bounds, bounds[1:], strict=False):
        path = str(folder / file["filename"])
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(start, end - start))
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))


def test_parquet_is_read_like_text(tmp_path):
    from pyarrow import parquet

    ages = [None if i % 5 == 0 else int(age) for i, age in enumerate(AGE)]
    columns = {"age": ages, "dose": DOSE, "old": AGE > 50, "outcome": OUTCOME}
    columns["colour"] = pa.array(COLOUR).dictionary_encode()
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    texts = {"age": ["" if age is None else age for age in ages], "colour": COLOUR}
    write(tmp_path / "a.csv", **columns | texts)
    options = {"label": "outcome", "missing": "mean", "categories": "one_hot"}
    one, other = (
        mhd.data.load(tmp_path / f"a.{ending}", **options) for ending in ("parquet", "csv")
    )
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.test_labels, other.test_labels)
    assert (one.feature_names, one.class_names) == (other.feature_names, other.class_names)
    when = pa.array(np.arange(4), pa.timestamp("s"))
    ragged, y = [[1], [1, 2], [], [3]], ["a", "b"] * 2
    parquet.write_table(pa.table({"when": when, "ragged": ragged, "y": y}), tmp_path / "b.parquet")
    for name, sentence in (
        ("when", "holds texts, like '1970-01-01 00:00:00' in row 0"),
        ("ragged", "column ragged holds lists of unequal lengths"),
    ):
        with pytest.raises(mhd.ConfigError, match=sentence):
            mhd.data.load(tmp_path / "b.parquet", label="y", features=name, test_fraction=0.5)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(mhd.ConfigError, match=r"b.parquet cannot be read as Parquet \(Arrow"):
        mhd.data.load(tmp_path / "b.parquet", label="y")


def test_texts_of_parquet_may_be_bytes(tmp_path):
    from pyarrow import parquet

    texts = np.array([name.encode() for name in ("Käse", "Öl")], object)[np.arange(SIZE) % 2]
    split = np.array([b"train", b"test"], object)[np.arange(SIZE) // 2 % 2]
    columns = {"x": DOSE, "y": pa.array(texts, pa.binary()), "split": pa.array(split, pa.binary())}
    columns["code"] = pa.array([b"\xff\x00"] * SIZE, pa.binary())
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    data = mhd.data.load(tmp_path / "b.parquet", label="y", features="x")
    assert data.class_names == ("Käse", "Öl") and len(data.test_labels) == SIZE // 2
    for options in ({"label": "y"}, {"label": "code", "features": "x"}):
        with pytest.raises(mhd.ConfigError, match=r"code holds [^\n]*bytes that are not UTF-8"):
            mhd.data.load(tmp_path / "b.parquet", **options)


def test_long_codes_of_parquet_stay_apart(tmp_path):
    from pyarrow import parquet

    code = 2**53 + np.arange(SIZE) % 3
    parquet.write_table(pa.table({"x": DOSE, "code": code, "owner": code}), tmp_path / "l.parquet")
    data = mhd.data.load(tmp_path / "l.parquet", label="code", owners="owner", features="x")
    assert data.class_names == data.owners.names == tuple(map(str, 2**53 + np.arange(3)))
    np.testing.assert_array_equal(data.labels, data.owners.of_training)


@pytest.mark.parametrize("name", [None, "patient"])
def test_the_index_of_pandas_is_a_feature_only_on_request(tmp_path, name):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS).sort_values("outcome").rename_axis(name)
    frame.to_parquet(tmp_path / "a.parquet")
    data = mhd.data.load(tmp_path / "a.parquet", label="outcome")
    assert data.feature_names == ("age", "dose")
    column = name or "__index_level_0__"
    asked = mhd.data.load(tmp_path / "a.parquet", label="outcome", features=f"{column},age")
    assert asked.feature_names == (column, "age")
    numbers = mhd.data.load(tmp_path / "a.parquet", label=column, features="age", regression=True)
    assert sorted([*numbers.numbers.train, *numbers.numbers.test]) == list(range(SIZE))


def test_a_saved_dataset_made_of_pandas_has_no_feature_of_its_index(tmp_path):
    columns = {"x": DOSE, "__index_level_0__": np.arange(SIZE), "y": OUTCOME}
    save_dataset(tmp_path / "own", arrow_table(columns))
    assert mhd.data.load(tmp_path / "own", label="y").feature_names == ("x",)


def test_a_saved_dataset_of_images(tmp_path):
    names = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    columns = {"image": [encoded(i) for i in range(20)], "label": np.arange(20) % 2}
    save_dataset(tmp_path / "own", arrow_table(columns, names))
    data = mhd.data.load(tmp_path / "own", label="label")
    assert data.name == "own" and data.class_names == ("cat", "dog")
    assert data.inputs.shape == (16, 4, 5, 3) and data.inputs.dtype == np.uint8
    np.testing.assert_array_equal(data.inputs[:, 0, 0, 0] % 2, data.labels)
    assert mhd.data.load(tmp_path / "own", label="label", image_size=3, channels=1).input_shape == (
        (3, 3, 1)
    )
    columns["label"] = np.where(np.arange(20) == 3, -1, 0)
    save_dataset(tmp_path / "none", arrow_table(columns, names))
    with pytest.raises(mhd.ConfigError, match="label is -1 in row 3, but its classes are 0 … 1"):
        mhd.data.load(tmp_path / "none", label="label")
    columns |= {"label": np.arange(20) % 2, "image": [{"bytes": b"no image", "path": None}] * 20}
    save_dataset(tmp_path / "bad", arrow_table(columns, names))
    with pytest.raises(mhd.ConfigError, match="bad, row 0: image cannot be read as an image"):
        mhd.data.load(tmp_path / "bad", label="label")


def test_a_saved_dataset_of_splits_and_several_parts(tmp_path):
    ids, mask = np.arange(60).reshape(20, 3), np.ones((20, 3), int)
    columns = {"input_ids": ids.tolist(), "mask": mask.tolist(), "y": ["a", "b"] * 10}
    for split, count in (("train", 20), ("test", 6), ("unsupervised", 4)):
        save_dataset(tmp_path / "d" / split, arrow_table(columns).slice(0, count), parts=1)
    (tmp_path / "d" / "dataset_dict.json").write_text(
        json.dumps({"splits": ["train", "test", "unsupervised"]})
    )
    with pytest.warns(UserWarning, match="^d: 4 of 30 rows .* whose split is unsupervised"):
        data = mhd.data.load(tmp_path / "d", label="y")
    np.testing.assert_array_equal(data.inputs["input_ids"], ids)
    np.testing.assert_array_equal(data.test_inputs["mask"], mask[:6])
    assert data.inputs["mask"].dtype == np.int32
    (tmp_path / "d" / "test" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    with pytest.raises(mhd.ConfigError, match=r"data-00000-of-00001.arrow cannot be read \(Arrow"):
        mhd.data.load(tmp_path / "d", label="y")
    (tmp_path / "d" / "dataset_dict.json").write_text("[")
    with pytest.raises(mhd.ConfigError, match=r"dataset_dict.json cannot be read \(JSON"):
        mhd.data.load(tmp_path / "d", label="y")
