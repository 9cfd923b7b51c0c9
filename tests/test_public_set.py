"""Where public samples come from, and how many there are."""

import numpy as np
import pytest

import mhd_jax as mhd
from tests.conftest import assert_trees_equal

RNG = np.random.default_rng(0)
DATA = mhd.data.arrays(RNG.integers(0, 256, (90, 4, 4, 1)).astype(np.uint8), np.arange(90) % 3)
OTHER = mhd.data.arrays(
    RNG.integers(0, 256, (50, 4, 4, 1)).astype(np.uint8), np.arange(50) % 2, name="other"
)


def clients(**options):
    return mhd.make_clients(DATA, 3, partition="iid", **options)


def test_another_data_set_is_the_public_one():
    who = clients(public=OTHER)
    np.testing.assert_array_equal(who.public_inputs, OTHER.inputs)
    assert (who.owner >= 0).all() and who.num_public == len(OTHER.labels) and not who.public.size
    assert who.settings["public_dataset"] == "other"
    assert who.role_counts() == {
        "private": 72,
        "public": 40,
        "validation": 0,
        "unused": 0,
        "test": 18,
    }


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("name", ["mhd", "distributed_distillation"])
def test_clients_learn_from_its_samples(name, placement):
    """A copy of the own public samples as another data set gives the same run."""
    settings = {"steps": 3, "eval_every": 3, "batch_size": 4, "public_batch_size": 4}
    own = clients(public_fraction=0.25)
    copy = mhd.data.arrays(
        DATA.inputs[own.public], np.arange(18) % 2, DATA.inputs[:4], np.arange(4) % 2
    )
    outside = mhd.make_clients(DATA, 3, partition=lambda *_: own.owner, public=copy)
    results = [
        mhd.simulate("complete", who, name, data_placement=placement, **settings)
        for who in (own, outside)
    ]
    assert_trees_equal(results[0].state.groups, results[1].state.groups)


def test_fewer_public_samples_leave_the_private_ones():
    whole, some, few = (clients(public_fraction=0.5, public_size=n) for n in (None, 20, 5))
    assert (whole.num_public, some.num_public, few.num_public) == (36, 20, 5)
    assert set(few.public) < set(some.public) < set(whole.public)
    np.testing.assert_array_equal(whole.owner, few.owner)
    np.testing.assert_array_equal(few.public_inputs, DATA.inputs[few.public])
    assert few.role_counts()["unused"] == 31
    other = clients(public=OTHER, public_size=7)
    assert other.num_public == 7
    assert all((OTHER.inputs == x).all(axis=(1, 2, 3)).any() for x in other.public_inputs)


def test_a_saved_split_goes_with_another_public_set(tmp_path):
    who = clients(public=OTHER)
    who.save_split(tmp_path / "split.npz")
    again = mhd.make_clients(DATA, 3, partition=tmp_path / "split.npz", public=OTHER)
    np.testing.assert_array_equal(again.owner, who.owner)
    np.testing.assert_array_equal(again.public_inputs, who.public_inputs)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"public": OTHER, "public_fraction": 0.1}, "public samples are those of other"),
        ({"public_size": 10}, r"public_size must be in 1 … 7, as many"),
        ({"public_size": 0}, "public_size must be in"),
        (
            {
                "public": mhd.data.arrays(
                    np.zeros((9, 5, 4, 1), np.uint8),
                    np.arange(9) % 3,
                    name="wide",
                    num_classes=3,
                    test_fraction=0.4,
                )
            },
            r"wide hold uint8 of shape \[5, 4, 1\], but arrays uint8 of shape \[4, 4, 1\]",
        ),
    ],
)
def test_public_sets_that_do_not_fit_are_refused(options, why):
    with pytest.raises(mhd.ConfigError, match=why):
        clients(**options)


def test_a_whole_split_and_a_public_fraction_contradict(tmp_path):
    clients().save_split(tmp_path / "split.npz")
    with pytest.raises(mhd.ConfigError, match="says which samples are public"):
        mhd.make_clients(DATA, 3, partition=tmp_path / "split.npz", public_fraction=0.1)
