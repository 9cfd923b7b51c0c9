"""Splits saved and loaded again, owners from files made by hand, and that no sample has two roles."""

import dataclasses
import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.data import split_files
from mhd_jax.data.split import Split
from tests.builders import Linear, assert_trees_equal, simulate_in, tiny_clients, tiny_dataset

SETTINGS = {"steps": 2, "eval_every": 1, "batch_size": 4, "public_batch_size": 8}
# Of 48 training samples 10 are nobody's, and four clients have the rest.
OWNERS = np.arange(48) % 5 - 1


def load(path, num_clients=4, **kwargs):
    return mhd.make_clients(tiny_dataset(), num_clients, Linear(), partition=path, **kwargs)


def assert_same_clients(one, other):
    for name in ("owner", "public", "validation", "label_distributions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.settings["split_digest"] == other.settings["split_digest"]


@pytest.mark.parametrize(
    "partition",
    [
        mhd.partition.primary_labels(1, 3.0),
        mhd.partition.dirichlet(0.5),
        mhd.partition.shards(2),
        lambda y, k, c, rng: np.where(np.arange(len(y)) < 5, -1, y % k),
    ],
)
def test_a_saved_split_is_loaded_exactly(partition, tmp_path):
    path = tmp_path / "split.npz"
    shares = {"public_fraction": 0.2, "validation_fraction": 0.1}
    first = tiny_clients(3, partition=partition, **shares, seed=7)
    first.save_split(path)
    for given in (path, str(path)):
        assert_same_clients(first, load(given, 3))
    # The seed does not change what the file says.
    other = load(path, 3, seed=1)
    assert_same_clients(first, other)
    assert other.settings == load(path, 3).settings


def test_splits_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    first = tiny_clients(3)
    first.save_split("~/split.npz")
    assert (tmp_path / "split.npz").exists()
    for given in ("~/split.npz", pathlib.Path("~/split.npz")):
        assert_same_clients(first, load(given, 3))


@pytest.mark.slow
def test_a_runs_split_repeats_the_run(tmp_path):
    first = tiny_clients(4, partition=mhd.partition.dirichlet(0.5), public_fraction=0.3, seed=3)
    result = simulate_in(tmp_path / "run", "ring", first, "naive", **SETTINGS)
    path = tmp_path / "run" / "split.npz"
    again = load(path).with_defaults(first.groups[0].optimizer)
    assert_same_clients(first, again)
    repeated = simulate_in(tmp_path / "again", "ring", again, "naive", **SETTINGS)
    assert_trees_equal(result.state, repeated.state)
    assert result.history[-1]["beta_priv"] == repeated.history[-1]["beta_priv"]
    assert (tmp_path / "again" / "split.npz").read_bytes() == path.read_bytes()
    settings = json.loads((tmp_path / "again" / "config.json").read_text())["settings"]["clients"]
    assert settings["partition"] == "file" and "public_fraction" not in settings


@pytest.mark.slow
def test_a_run_that_lost_its_split_gets_it_again(tmp_path):
    who = tiny_clients(public_fraction=0.3)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_in(tmp_path, "ring", who, "isolated", callbacks=stop, **SETTINGS)
    split = (tmp_path / "split.npz").read_bytes()
    (tmp_path / "split.npz").unlink()
    simulate_in(tmp_path, "ring", who, "isolated", **SETTINGS)
    assert (tmp_path / "split.npz").read_bytes() == split


def written(folder, ending, owners):
    path = folder / f"owners{ending}"
    if ending == ".npy":
        np.save(path, owners)
    else:
        np.savetxt(path, owners, fmt="%s", header="owner", comments="")
    return path


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_owners_by_hand_are_kept_and_the_rest_is_drawn_from_nobodys(ending, tmp_path):
    path = written(tmp_path, ending, OWNERS)
    clients = load(path, public_fraction=0.1, validation_fraction=0.05)
    np.testing.assert_array_equal(clients.owner, OWNERS)
    assert (len(clients.public), len(clients.validation)) == (5, 2)  # of 48
    drawn = np.concatenate([clients.public, clients.validation])
    assert len(np.unique(drawn)) == 7 and (OWNERS[drawn] == -1).all()
    roles = {"private": 38, "public": 5, "validation": 2, "unused": 3, "test": 12}
    assert clients.role_counts() == roles
    other = load(path, public_fraction=0.1, validation_fraction=0.05, seed=1)
    assert set(other.public) != set(clients.public)
    assert other.settings["split_digest"] != clients.settings["split_digest"]
    written(tmp_path, ending, OWNERS.clip(0))
    without = load(path, public_fraction=0.0)  # with nobody's samples gone, nothing can be drawn
    assert without.num_public == 0


def test_a_csv_may_lack_its_header_and_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "owners.csv"
    path.write_text("\ufeff" + "\n".join(map(str, OWNERS)), encoding="utf-8")
    np.testing.assert_array_equal(load(path).owner, OWNERS)


@pytest.mark.parametrize(
    ("ending", "owners", "sentence"),
    [
        (
            ".npy",
            OWNERS[:-1],
            "must hold one owner for each of the 48 training samples, but holds 47",
        ),
        (".csv", OWNERS[:-1], "for each of the 48 training samples, but holds 47"),
        (".npy", OWNERS[:, None], r"not a readable assignment: it holds int64 \[48, 1\]"),
        (".npy", OWNERS / 2, r"it holds float64 \[48\], not integers"),
        (".npy", np.array([None] * 48), "is not a readable assignment"),
        (".csv", OWNERS[:, None] * [1, 1], "line 2: expected the client of a sample, or −1, found"),
        (".npy", OWNERS + (OWNERS == 3), "gives client 3 no samples; .* as numpy.unique"),
        (".npy", np.arange(48) % 6 - 1, "to 5 clients, but num_clients is 4; make the two equal"),
        (".npy", OWNERS.clip(max=2), "to 3 clients, but num_clients is 4"),
        (".npy", np.r_[-2, OWNERS[1:]], "must give owners in −1 … 3, but they span -2 … 3"),
        (".npy", np.where(OWNERS == 1, 0, OWNERS), "gives client 1 no samples; number its clients"),
        (".npy", OWNERS.clip(0), "leaves 0 of 48 samples to nobody .* take 5; lower them"),
        (".csv", np.array(["1", "", "2"]), "line 3: .* found ''"),
        (".csv", np.array([1, 10**30]), "is not a readable assignment"),
        (".txt", OWNERS, "is not an assignment: give the split.npz of a run"),
    ],
)
def test_owners_that_cannot_be_are_refused(ending, owners, sentence, tmp_path):
    with pytest.raises(mhd.ConfigError, match=sentence):
        load(written(tmp_path, ending, owners))


ROWS = {client: np.flatnonzero(client == OWNERS) for client in range(4)}


@pytest.mark.parametrize(
    "given",
    [
        OWNERS,
        OWNERS.tolist(),
        OWNERS.astype(np.int8),
        jnp.asarray(OWNERS),
        ROWS,
        {client: rows.tolist() for client, rows in reversed(ROWS.items())},
        list(ROWS.values()),
    ],
)
def test_owners_and_rows_given_as_they_are_serve_as_a_file_does(given, tmp_path):
    options = {"public_fraction": 0.1, "validation_fraction": 0.05}
    found, expected = load(given, **options), load(written(tmp_path, ".npy", OWNERS), **options)
    assert_same_clients(found, expected)
    assert found.settings == {**expected.settings, "partition": "given"}
    whole = load(np.arange(48) % 4, public_fraction=0.0)
    assert whole.num_public == 0
    assert found.settings["split_digest"] != whole.settings["split_digest"]


NAMES = np.array(["ann", "bob", "cem", "dan"])[OWNERS.clip(0)]
UNIQUE = r"numpy.unique\(ids, return_inverse=True\)\[1\]"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (OWNERS[:-1], "the partition must hold one owner for each of the 48 .* but holds 47"),
        (OWNERS[:, None], r"must have shape \[48\], the client of each .*, not \[48, 1\]"),
        (NAMES, f"clients 0 … K − 1, .* holds <U3 .*; number them, as {UNIQUE}"),
        (NAMES.tolist(), "holds <U3"),
        (OWNERS / 1, "holds float64"),
        (OWNERS.astype(np.uint64), "holds 18446744073709551615, which is no client"),
        (OWNERS * 5 + 17, f"gives client 0 no samples; number its clients .*, as {UNIQUE}"),
        (np.arange(48) % 4, "leaves 0 of 48 .* take 5; lower them .* another public data set"),
        (OWNERS.clip(max=2), "to 3 clients, but num_clients is 4"),
        (np.r_[-2, OWNERS[1:]], "must give owners in −1 … 3, but they span -2"),
        ({**ROWS, 4: []}, r"must name the clients 0 … 3; check \[4\]"),
        ({"0": [1]}, "must name the clients 0 … 3; check"),
        ({**ROWS, 1: ROWS[0]}, "gives training sample 1 to client 1 and once more"),
        ({**ROWS, 1: [2, 7, 7]}, "gives training sample 7 to client 1 and once more"),
        ({**ROWS, 1: [48]}, r"client 1 rows .* 0 … 47, not int64 \[1\] in 48 … 48"),
        ({**ROWS, 1: OWNERS == 1}, r"client 1 rows .*, not bool \[48\]"),
        ({**ROWS, 1: [[1], [2, 3]]}, "client 1 rows"),
        ({**ROWS, 1: 5}, r"client 1 rows .*, not int64 \[\]"),
        ({**ROWS, 1: []}, "client 1 got no private samples"),
        (5, "a partition is a name, a function .*, not of type int"),
        (lambda labels: labels, r"\(labels, num_clients, num_classes, rng\) .* not: too"),
        (lambda y, k, c, rng: [1, 2], r"must return one integer for each of the 43 .* shape \[2\]"),
        (lambda y, k, c, rng: y / 2, "but returned float64"),
        (lambda y, k, c, rng: [[1], [1, 2]], "the partition <lambda> failed .ValueError"),
        (lambda y, k, c, rng: y + 9, "must give owners in −1 … 3, but they span -1 … 11"),
        (lambda y, k, c, rng: {}[k], r"the partition <lambda> failed \(KeyError: 4\)"),
    ],
)
def test_partitions_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence) as refused:
        load(given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"public": [25, 25]}, "gives training sample 25 2 roles"),
        ({"public": [15, 20]}, "gives training sample 15 2 roles"),  # also for validation
        ({"validation": [1, 40]}, "gives training sample 1 2 roles"),  # also a client's
        ({"public": [48]}, "must name training samples in 0 … 47, but"),
        ({"validation": [-1]}, "must name training samples in 0 … 47, but"),
    ],
)
def test_no_sample_has_two_roles(change, sentence, tmp_path):
    free = np.flatnonzero(OWNERS == -1)
    split = Split(OWNERS, free[:3], free[3:5])
    path = tmp_path / "split.npz"
    split_files.save(path, split, tiny_dataset().labels)
    assert load(path).num_public == 3
    arrays = {name: np.array(rows) for name, rows in change.items()}
    split_files.save(path, dataclasses.replace(split, **arrays), tiny_dataset().labels)
    with pytest.raises(mhd.ConfigError, match=sentence):
        load(path)


def test_the_data_and_the_file_must_be_the_right_ones(tmp_path):
    path = tmp_path / "split.npz"
    tiny_clients(4).save_split(path)
    data = tiny_dataset()
    shuffled = dataclasses.replace(data, labels=np.roll(data.labels, 1))
    refused = functools.partial(pytest.raises, mhd.ConfigError)
    with refused(match="belongs to other training samples"):
        mhd.make_clients(shuffled, 4, Linear(), partition=path)
    with refused(match="to 4 clients, but num_clients is 8"):
        load(path, 8)
    with refused(match=r"no assignment file '.*none\.npz'"):
        load(tmp_path / "none.npz")
    with refused(match=r"unknown partition 'none'; .* path of an assignment"):
        load("none")
    with refused(match=r"a split is saved as \.npz, not as split\.csv"):
        tiny_clients(4).save_split(tmp_path / "split.csv")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"owner"):
        path.write_bytes(content)
        with refused(match=r"split\.npz is not a readable assignment"):
            load(path)
    np.savez(path, owner=OWNERS)
    with refused(match=r"split\.npz is not a readable assignment: 'public"):
        load(path)
    renamed = path.rename(tmp_path / "split.npy")
    with refused(match="of another format than its ending says"):
        load(renamed)
    assert list(pathlib.Path(tmp_path).iterdir()) == [renamed]  # nothing half written is left
