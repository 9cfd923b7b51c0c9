"""Where public samples come from, and how many there are."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mhd_jax as mhd
from tests.builders import assert_trees_equal, thinned

PIXELS = np.random.default_rng(0).integers(0, 256, (140, 4, 4, 1)).astype(np.uint8)
DATA = mhd.data.arrays(PIXELS[:90], np.arange(90) % 3)
OTHER = mhd.data.arrays(PIXELS[90:], np.arange(50) % 2, name="other")


class Parts(nn.Module):
    """Takes both halves of an image."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = jnp.concatenate([x["a"], x["b"]], axis=1)
        return nn.relu(nn.Dense(4)(x.reshape(len(x), -1)))


def clients(**options):
    return mhd.make_clients(DATA, 3, partition="iid", **options)


def as_they_are(images):
    return images


def with_images(images, given=as_they_are):
    """A data set that trains on these, and has others to test on."""
    labels, test = np.arange(len(images)) % 2, given(OTHER.test_inputs)
    return mhd.data.arrays(
        given(images), labels, test, OTHER.test_labels, name="leaky", pixels=True
    )


def test_another_data_set_is_the_public_one():
    who = clients(public=OTHER)
    np.testing.assert_array_equal(who.public_inputs, OTHER.inputs)
    assert (who.owner >= 0).all() and who.num_public == len(OTHER.labels) and not who.public.size
    assert who.settings["public_dataset"] == "other"
    roles = {"private": 72, "public": 40, "validation": 0, "unused": 0, "test": 18}
    assert who.role_counts() == roles


@pytest.mark.parametrize(
    ("name", "placement"), thinned([("mhd", "device"), ("distributed_distillation", "host")], 2)
)
def test_clients_learn_from_its_samples(name, placement):
    """A copy of the own public samples as another data set gives the same run."""
    settings = {"steps": 3, "eval_every": 3, "batch_size": 4, "public_batch_size": 4}
    own = clients(public_fraction=0.25)
    copy = with_images(DATA.inputs[own.public])
    outside = mhd.make_clients(DATA, 3, partition=own.owner, public=copy)
    settings |= {"data_placement": placement}
    one, other = (mhd.simulate("complete", who, name, **settings) for who in (own, outside))
    assert_trees_equal(one.state.groups, other.state.groups)


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


@pytest.mark.parametrize("parts", [False, True])
def test_public_samples_with_another_role_are_refused_unless_they_may_have_one(parts):
    halves = lambda images: {"a": images[:, :2], "b": images[:, 2:]}
    given = halves if parts else as_they_are
    train, test = given(DATA.inputs), given(DATA.test_inputs)
    data = mhd.data.arrays(train, DATA.labels, test, DATA.test_labels, pixels=True)
    own = {"partition": "iid", "validation_fraction": 0.25, "model": Parts() if parts else "mlp"}
    plain = mhd.make_clients(data, 3, **own, public_fraction=0.0)
    private, validation = np.flatnonzero(plain.owner >= 0)[:4], plain.validation[:3]
    leaky = DATA.inputs[private], DATA.inputs[validation], DATA.test_inputs[:2]
    public = with_images(np.concatenate([OTHER.inputs, *leaky]), given)
    with pytest.raises(mhd.ConfigError, match=r"49 public .* \(4 private, 3 validation, 2 test\)"):
        mhd.make_clients(data, 3, **own, public=public)
    taken = mhd.make_clients(data, 3, **own, public=public, allow_overlap=True)
    assert taken.num_public == 49 and taken.settings["allow_overlap"]
    apart = mhd.make_clients(data, 3, **own, public=public, public_size=1, seed=0)
    assert "allow_overlap" not in apart.settings and "allow_overlap" not in plain.settings


def test_what_nobody_owns_may_be_public():
    owner = np.where(np.arange(72) < 40, np.arange(72) % 3, -1)
    free = with_images(DATA.inputs[40:])
    who = mhd.make_clients(DATA, 3, partition=owner, public=free)
    assert who.num_public == 32
    with pytest.raises(mhd.ConfigError, match=r"33 public samples of leaky, .* \(1 private\)"):
        mhd.make_clients(DATA, 3, partition=owner, public=with_images(DATA.inputs[39:]))


def test_test_samples_that_are_trained_on_are_warned_of():
    images = np.concatenate([DATA.test_inputs, DATA.inputs[:5]])
    labels = np.concatenate([DATA.test_labels, DATA.labels[:5]])
    data = mhd.data.arrays(DATA.inputs, DATA.labels, images, labels)
    with pytest.warns(UserWarning, match="^5 of the 23 test samples of arrays are training"):
        mhd.make_clients(data, 3)
    with warnings.catch_warnings(action="error"):
        mhd.make_clients(DATA, 3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"allow_overlap": True}, "allow_overlap is for another public data set"),
        ({"public": OTHER, "allow_overlap": 1}, "allow_overlap must be True or False"),
        ({"public": OTHER, "public_fraction": 0.1}, "public samples are those of other"),
        ({"public_size": 10}, r"public_size must be in 1 … 7, as many"),
        ({"public_size": 0}, "public_size must be in"),
        (
            {
                "public": mhd.data.arrays(
                    np.zeros((15, 5, 4, 1), np.uint8), np.arange(15) % 3, name="wide"
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
