"""Shuffled streams, batches, partitions, and who owns what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax.core.digests import array_digest
from mhd_jax.data.batching import BatchSpec, draw_batch
from mhd_jax.data.partition_statistics import label_entropy, mean_total_variation
from mhd_jax.data.preprocessing import PLAIN
from mhd_jax.data.shuffle import shuffled
from mhd_jax.engine.steps import device_data
from tests.builders import Linear, thinned, tiny_clients, tiny_dataset

stream = jax.jit(shuffled)


def counts_of(owner, labels, num_clients, num_classes=10):
    """How many samples of each class each client owns, [K, C]."""
    counts = np.zeros((num_clients, num_classes), int)
    np.add.at(counts, (owner, labels), 1)
    return counts


@pytest.mark.parametrize("size", thinned([1, 2, 3, 4, 5, 7, 10, 16, 17, 160, 1000, 1447], 3))
def test_each_epoch_visits_every_sample_once(size):
    positions = jnp.arange(3 * size, dtype=jnp.uint32)
    epochs = np.asarray(stream(jax.random.key(size), positions, jnp.asarray(size))).reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(size)] * 3)
    if size >= 10:
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_orders_look_uniform():
    """Over 4,000 epochs of 12 samples: who comes first, and who follows whom."""
    size, epochs = 12, 4000
    positions = jnp.arange(size * epochs, dtype=jnp.uint32)
    order = np.asarray(stream(jax.random.key(0), positions, jnp.asarray(size))).reshape(-1, size)
    at_place = np.stack([np.bincount(order[:, p], minlength=size) for p in range(size)])
    expected = epochs / size
    # Chi-square with (12 − 1)² degrees of freedom: mean 121, standard deviation 15.6.
    assert ((at_place - expected) ** 2 / expected).sum() < 121 + 6 * 15.6
    pairs = np.zeros((size, size))
    np.add.at(pairs, (order[:, :-1].ravel(), order[:, 1:].ravel()), 1)
    pairs = pairs[~np.eye(size, dtype=bool)]
    expected = epochs * (size - 1) / (size * (size - 1))
    # 132 ordered pairs: mean 131, standard deviation about 16.
    assert ((pairs - expected) ** 2 / expected).sum() < 131 + 6 * 16.2


def test_large_sets_lose_no_sample():
    """Sums of hashes near 2³² must not wrap before they are reduced."""
    size = 4_000_000
    positions = jnp.arange(53 * size, 54 * size, dtype=jnp.uint32)
    epoch = np.asarray(stream(jax.random.key(2), positions, jnp.asarray(size)))
    assert (np.bincount(epoch, minlength=size) == 1).all()


def test_streams_of_different_keys_differ():
    positions = jnp.arange(100, dtype=jnp.uint32)
    a, b = (stream(jax.random.key(k), positions, jnp.asarray(100)) for k in (0, 1))
    assert (np.asarray(a) == np.asarray(b)).sum() < 10


def test_batches_of_unequal_clients_read_whole_epochs_of_their_own():
    owner_sizes = [3, 20, 25]

    owner = np.repeat(np.arange(3), owner_sizes)
    clients = tiny_clients(3, partition=owner, public_fraction=0.0)
    data = device_data(clients)
    np.testing.assert_array_equal(data.sizes, owner_sizes)
    spec = BatchSpec(private=4)
    draw = jax.jit(lambda step: draw_batch(data, jax.random.key(0), jnp.arange(3), step, spec))
    batches = [draw(jnp.asarray(step)) for step in range(25)]
    for client, size in enumerate(owner_sizes):
        seen = np.concatenate([np.asarray(b.inputs[client]) for b in batches])  # 100 samples
        own = clients.data.inputs[clients.owner == client]
        for epoch in range(100 // size):
            part = seen[epoch * size : (epoch + 1) * size]
            np.testing.assert_array_equal(np.unique(part, axis=0), np.unique(own, axis=0))
    assert all((np.asarray(b.mask) == 1).all() for b in batches)
    for b in batches:  # labels travel with their samples
        flat = np.asarray(b.inputs).reshape(-1, 4)
        rows = [int(np.flatnonzero((clients.data.inputs == x).all(axis=1))[0]) for x in flat]
        np.testing.assert_array_equal(clients.data.labels[rows], np.asarray(b.labels).ravel())


def test_public_batches_are_shared_or_independent():
    clients = tiny_clients(4, public_fraction=0.5)
    data = device_data(clients)
    ids = jnp.arange(4)
    draw = lambda spec: draw_batch(data, jax.random.key(0), ids, jnp.asarray(3), spec)
    shared = draw(BatchSpec(2, 5))
    assert shared.public_is_shared and shared.public_inputs.shape == (5, 4)
    own = draw(BatchSpec(2, 5, independent_public=True))
    assert not own.public_is_shared and own.public_inputs.shape == (4, 5, 4)
    assert len({tuple(np.asarray(row)) for row in own.public_indices}) == 4
    public = clients.data.inputs[clients.public]
    np.testing.assert_array_equal(own.public_inputs, public[np.asarray(own.public_indices)])


def test_pixels_are_scaled_and_other_numbers_are_not():
    scaled = PLAIN({"a": jnp.array([0, 255], jnp.uint8), "b": jnp.array([-3.0, 7.0])})
    np.testing.assert_array_equal(scaled["a"], [0, 1])
    np.testing.assert_array_equal(scaled["b"], [-3, 7])


def test_digits_have_a_fixed_stratified_split():
    a, b = mhd.data.load("digits"), mhd.data.load("digits")
    assert array_digest(a.inputs, a.test_labels) == array_digest(b.inputs, b.test_labels)
    assert a.inputs.shape == (1437, 8, 8, 1) and a.test_inputs.shape == (360, 8, 8, 1)
    assert a.inputs.min() == 0 and a.inputs.max() == 1
    counts = np.bincount(a.test_labels)
    assert counts.min() >= 35 and counts.max() <= 37


@settings(max_examples=60, deadline=None)
@given(
    num_clients=st.integers(1, 12),
    labels_per_client=st.integers(1, 3),
    skew=st.sampled_from([0.0, 1.0, 100.0, float("inf")]),
    assignment=st.sampled_from(["balanced", "random"]),
    seed=st.integers(0, 2**31),
)
def test_partitions_give_every_sample_one_owner(
    num_clients, labels_per_client, skew, assignment, seed
):
    labels = np.arange(300) % 3
    rng = np.random.default_rng(seed)
    rule = mhd.partition.primary_labels(labels_per_client, skew, assignment)
    for owner in (
        rule(labels, num_clients, 3, rng),
        mhd.partition.iid()(labels, num_clients, 3, rng),
    ):
        assert owner.shape == labels.shape and owner.min() >= 0 and owner.max() < num_clients
    sizes = np.bincount(owner, minlength=num_clients)
    assert sizes.max() - sizes.min() <= 1


def test_primary_labels_are_likelier_by_the_skew():
    labels = np.arange(200_000) % 10
    rule = mhd.partition.primary_labels(labels_per_client=2, skew=9.0)
    owner = rule(labels, 5, 10, np.random.default_rng(0))
    primary = rule.primary_labels(5, 10, np.random.default_rng(0))
    counts = counts_of(owner, labels, 5)
    shares = counts / counts.sum(axis=0)
    # Each label is primary for one of five clients: weights 10, 1, 1, 1, 1.
    np.testing.assert_array_equal(primary.sum(axis=0), 1)
    np.testing.assert_allclose(shares[primary], 10 / 14, atol=0.02)
    np.testing.assert_allclose(shares[~primary], 1 / 14, atol=0.02)


def test_balanced_and_random_assignment():
    balanced = mhd.partition.primary_labels(2)
    for seed in range(20):
        primary = balanced.primary_labels(8, 10, np.random.default_rng(seed))
        assert (primary.sum(axis=1) == 2).all()
        assert set(primary.sum(axis=0)) == {1, 2}
    loose = mhd.partition.primary_labels(2, assignment="random")
    spread = [loose.primary_labels(8, 10, np.random.default_rng(s)).sum(axis=0) for s in range(20)]
    assert any(uses.max() > 2 or uses.min() == 0 for uses in spread)


def test_infinite_skew_gives_disjoint_classes():
    data = mhd.data.load("digits")
    rule = mhd.partition.primary_labels(labels_per_client=2, skew=float("inf"))
    clients = mhd.make_clients(data, 5, partition=rule)
    present = clients.label_counts() > 0
    assert (present.sum(axis=0) == 1).all() and (present.sum(axis=1) == 2).all()
    # A class that is nobody's primary label is not lost.
    few = mhd.make_clients(data, 3, partition=rule)
    assert few.label_counts().sum() == (few.owner >= 0).sum() == len(data.labels) - len(few.public)


@pytest.mark.parametrize("seed", [0, 1])
def test_private_public_and_validation_are_disjoint(seed):
    data = mhd.data.load("digits")
    clients = mhd.make_clients(data, public_fraction=0.2, validation_fraction=0.1, seed=seed)
    private = np.flatnonzero(clients.owner >= 0)
    parts = [private, clients.public, clients.validation]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == len(data.labels)
    assert [len(p) for p in parts[1:]] == [287, 144]
    np.testing.assert_allclose(clients.label_distributions.sum(axis=1), 1)
    counts = counts_of(clients.owner[private], data.labels[private], 8)
    np.testing.assert_array_equal(clients.label_counts(), counts)
    # No test sample is also a training sample by its place in the source: splits are indices.
    again = mhd.make_clients(data, public_fraction=0.2, validation_fraction=0.1, seed=seed)
    np.testing.assert_array_equal(clients.owner, again.owner)


def test_pooled_clients_hold_everything():
    clients = mhd.make_clients(mhd.data.load("digits"))
    pooled = clients.pooled()
    assert pooled.num_clients == 1
    np.testing.assert_array_equal(pooled.label_counts()[0], clients.label_counts().sum(axis=0))
    mean = clients.label_distributions.mean(axis=0)
    np.testing.assert_allclose(pooled.label_distributions[0], mean)


def test_own_arrays_and_mixed_models():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 6, 6, 3)).astype(np.uint8)
    data = mhd.data.load((images, np.arange(90) % 3), name="mine")
    assert data.name == "mine" and data.inputs.dtype == np.uint8 and len(data.test_labels) == 18
    clients = mhd.make_clients(data, 4, "mlp:3,cnn:1", partition="iid")
    assert clients.model_names == ["mlp", "mlp", "mlp", "cnn"]
    by_id = mhd.make_clients(data, 3, {0: "cnn", 1: "mlp", 2: "cnn"}, partition="iid")
    assert [group.members for group in by_id.groups] == [(0, 2), (1,)]


def test_pixels_of_any_integer_type_and_splits_of_ones_own():
    x, y = np.arange(48).reshape(12, 2, 2) % 256, np.arange(12) % 3
    data = mhd.data.load(((x, y), (x[:3], y[:3])))
    assert data.inputs.dtype == np.uint8 and len(data.test_labels) == 3
    assert mhd.data.load([x, y]).inputs.dtype == np.uint8
    assert mhd.data.arrays(x * 100, y).inputs.dtype == np.int32


X, Y = np.zeros((12, 2), np.float32), np.arange(12) % 3
TOKENS = np.arange(48).reshape(12, 4)


def test_parts_of_samples_may_be_lists():
    parts = {"t": TOKENS, "u": {"v": TOKENS / 3}}
    listed = {"t": TOKENS.tolist(), "u": {"v": [row / 3 for row in TOKENS]}}
    ours, theirs = (mhd.data.arrays(given, Y).inputs for given in (parts, listed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with pytest.raises(mhd.ConfigError, match="images must be arrays"):
        mhd.data.arrays({"t": [[1.0]] * 11 + [[1.0, 2.0]]}, Y)


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.filterwarnings("error:.*taken for pixels")
def test_what_integers_are_can_be_said(pixels, tmp_path):
    np.savez(tmp_path / "tokens.npz", images=TOKENS, labels=Y)
    parts = {"t": TOKENS.astype(np.uint8), "u": TOKENS}
    for data in (
        mhd.data.arrays(TOKENS, Y, pixels=pixels),
        mhd.data.arrays(parts, Y, pixels=pixels),
        mhd.data.load((TOKENS, Y), pixels=pixels),
        mhd.data.load(tmp_path / "tokens.npz", pixels=pixels),
    ):
        stored = {leaf.dtype for leaf in jax.tree.leaves((data.inputs, data.test_inputs))}
        assert stored == {np.dtype(np.uint8 if pixels else np.int32)}


@pytest.mark.parametrize(
    "inputs",
    [
        TOKENS,
        TOKENS.astype(np.uint8),
        {"t": TOKENS.astype(np.uint8)},
        np.eye(12, dtype=int)[:, None, :, None],
    ],
)
def test_integers_that_hardly_look_like_pixels_are_told_of(inputs):
    with pytest.warns(UserWarning, match=r"are taken for pixels and divided by 255; say pixels=T"):
        data = mhd.data.arrays(inputs, Y)
    assert jax.tree.leaves(data.inputs)[0].dtype == np.uint8


def test_the_test_split_follows_the_training_split():
    """What is a token there is no pixel here, though it be small."""
    data = mhd.data.arrays(TOKENS + 300, Y, TOKENS[:3], Y[:3])
    assert data.test_inputs.dtype == np.int32
    np.testing.assert_array_equal(data.test_inputs, TOKENS[:3])
    with pytest.raises(
        mhd.ConfigError, match="test_images must be pixels in 0 … 255, but span 300"
    ):
        mhd.data.arrays(TOKENS[..., None, None], Y, TOKENS[:3, :, None, None] + 300, Y[:3])
    parts = {"t": TOKENS}, {"t": TOKENS[:3].astype(np.uint8)}
    found = mhd.data.arrays(parts[0], Y, parts[1], Y[:3])
    assert found.test_inputs["t"].dtype == np.int32


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((3, 9, 9), r"shape \[3, 9, 9\], channels first; numpy.moveaxis\(images, 1, -1\)"),
        ((1, 9, 30), "channels first; numpy.moveaxis"),
        ((12, 20, 20), "channels first; numpy.moveaxis"),
        ((9, 9), r"shape \[9, 9\], without an axis of channels; images\[..., None\] adds one"),
    ],
)
def test_images_of_another_layout_are_named_wherever_images_are_needed(shape, remedy):
    data = mhd.data.arrays(np.random.default_rng(0).random((12, *shape)), Y)
    flat = mhd.make_clients(data, 2, "mlp", partition="iid")
    for make in (
        *(lambda net=net: mhd.make_clients(data, 2, net) for net in ("cnn", "lenet5", "vit_tiny")),
        lambda: mhd.make_clients(data, 2, "mlp", objectives="supervised:1,simclr:1"),
        lambda: data.prepared(standardize=True),
        lambda: mhd.simulate("complete", flat, "isolated", steps=1, augmentation="flip"),
    ):
        with pytest.raises(mhd.ConfigError, match=rf"images \[height, width, .*but .*{remedy}"):
            make()


@pytest.mark.parametrize("shape", [(4, 4, 1), (3, 5, 3), (1, 8, 4), (1, 99, 9), (64, 64, 13)])
def test_images_of_odd_shapes_are_images(shape):
    data = mhd.data.arrays(np.random.default_rng(0).random((12, *shape)), Y)
    assert mhd.make_clients(data, 2, "lenet5", partition="iid").model_names == ["lenet5"] * 2


def test_bfloat16_samples_are_numbers():
    images = jnp.linspace(-3, 3, 24, dtype=jnp.bfloat16).reshape(12, 2)
    data = mhd.data.arrays(images, Y, images, Y)
    np.testing.assert_array_equal(data.inputs, np.asarray(images, np.float32))
    np.testing.assert_array_equal(data.test_inputs, data.inputs)


class Listed(nn.Module):
    widths: list

    def __call__(self, x, train=False):
        return x


class Trainless(nn.Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mhd.data.load("mni ts"), "unknown dataset 'mni ts'; choose digits or"),
        (lambda: mhd.data.load(7), "unknown dataset of type int"),
        (lambda: mhd.data.arrays(X, Y[:5]), r"labels must have shape \[12\]"),
        (lambda: mhd.data.arrays(X, Y + 0.5), r"integers, not float64; give labels.astype\(int\)"),
        (
            lambda: mhd.data.arrays(X, Y.astype(str)),
            r"number names by class_names, labels = np.unique",
        ),
        (
            lambda: mhd.data.arrays(X, Y, X, np.eye(3)[Y]),
            r"test_labels.argmax\(axis=1\) where rows",
        ),
        (lambda: mhd.data.arrays(X, Y[:, None]), r"not \[12, 1\]; give labels\[:, 0\]"),
        (lambda: mhd.data.arrays(scipy.sparse.csr_array(X), Y), r"give images\.toarray\(\)"),
        (lambda: mhd.data.arrays(X, None), "labels must be arrays, not of type NoneType"),
        (lambda: mhd.data.arrays(X, {"y": Y}), "labels must be one array, not a dict"),
        (lambda: mhd.data.arrays(X, Y - 1), "count classes from 0"),
        (lambda: mhd.data.arrays(X, Y + 1, num_classes=3), "in 0 … 2, but they span 1 … 3"),
        (lambda: mhd.data.arrays(X * np.nan, Y), "NaN or infinity"),
        (lambda: mhd.data.arrays(X[:0], Y[:0]), "with N > 0"),
        (lambda: mhd.data.arrays(X.astype(str), Y), "must be numbers"),
        (lambda: mhd.data.arrays(X, Y * 0), "only one class"),
        (lambda: mhd.data.arrays(X, Y, X), "give both test_images and test_labels"),
        (lambda: mhd.data.arrays(X, Y, X[:, :1], Y), "make them alike"),
        (lambda: mhd.data.arrays(X, np.arange(12)), "stratified test split"),
        (lambda: mhd.partition.primary_labels(skew=-1), "skew must be at least 0"),
        (lambda: mhd.partition.primary_labels(skew=float("nan")), "skew must be at least 0"),
        (lambda: mhd.partition.primary_labels(0), "labels_per_client must be at least 1"),
        (lambda: mhd.partition.primary_labels(assignment="x"), "'balanced' or 'random'"),
        (lambda: mhd.partition.dirichlet(0.0), "alpha must be positive"),
        (lambda: mhd.partition.dirichlet(min_samples=-1), "min_samples must be at least 0"),
        (lambda: mhd.partition.shards(0), "shards_per_client must be at least 1"),
    ],
)
def test_bad_data_is_refused(make, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        make()


FIRST_MASKED = np.arange(12) == 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda y: mhd.data.arrays(y[:, None], Y, pixels=False), "images"),
        (lambda y: mhd.data.arrays({"a": {"b": y}}, Y), r"images\['a'\]\['b'\]"),
        (lambda y: mhd.data.arrays(X, y), "labels"),
        (lambda y: mhd.data.arrays(X, y, regression=True), "labels"),
        (lambda y: mhd.data.arrays(X, Y, X, y), "test_labels"),
        (lambda y: mhd.data.arrays(X, Y, owners=y), "owners"),
        (
            lambda y: mhd.make_clients(
                mhd.data.arrays(X, Y, X + 1, Y), 3, partition=y, public_fraction=0.0
            ),
            "owners",
        ),
    ],
)
def test_masked_arrays_have_no_masked_entries(make, name):
    with pytest.raises(mhd.ConfigError, match=f"^[^:]*{name} have 1 masked entries, .* fill them"):
        make(np.ma.array(Y, mask=FIRST_MASKED))
    make(np.ma.array(Y))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_clients": 0}, "num_clients must be an integer and at least 1"),
        ({"num_clients": 2.0}, "num_clients must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"partition": "iidd"}, "unknown partition 'iidd'"),
        ({"model": Listed([3])}, "Listed cannot be hashed"),
        ({"model": Trainless()}, "must take `train: bool`"),
        ({"num_clients": 40}, "got no private samples; use fewer"),
        ({"public_fraction": 1.0}, "public_fraction must be in"),
        ({"public_fraction": -0.1}, "public_fraction must be in"),
        ({"public_fraction": 0.6, "validation_fraction": 0.5}, r"public_fraction \+ validation"),
        ({"model": "resnet99"}, "unknown model 'resnet99'; choose one of mlp"),
        ({"model": "resnet20"}, "needs images"),
        ({"model": "mlp", "norm": "group"}, "does not know the norm 'group'"),
        ({"model": "mlp:1,mlp"}, "counts that add up"),
        ({"model": "mlp:1,mlp:2"}, "are for 3 clients, but there are 4"),
        ({"model": ["mlp"]}, "are for 1 clients"),
        ({"model": {0: "mlp"}}, "must name clients 0 … 3"),
        ({"model": 7}, "a model is a name, a Flax module"),
        (
            {"partition": mhd.partition.primary_labels(4)},
            "labels_per_client is 4, but there are on",
        ),
        (
            {"partition": mhd.partition.dirichlet(0.1, min_samples=20)},
            "than 20 of 43 samples; raise al",
        ),
        ({"partition": mhd.partition.shards(20)}, "80 shards need as many samples"),
        ({"model": Linear(), "norm": "group"}, "norm is that of models given by name"),
        (
            {"model": "mlp_small", "optimizers": mhd.optim.SGD()},
            "optimizers are those of some models",
        ),
    ],
)
def test_bad_clients_are_refused(settings, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.make_clients(tiny_dataset(), **{"num_clients": 4, **settings})


@settings(max_examples=60, deadline=None)
@given(
    num_clients=st.integers(1, 25),
    alpha=st.sampled_from([0.05, 0.5, 100.0]),
    balanced=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_dirichlet_and_shards_give_every_sample_one_owner(num_clients, alpha, balanced, seed):
    labels = np.random.default_rng(seed).permutation(np.arange(600) % 10)
    rng = np.random.default_rng(seed)
    least = 0 if alpha < 0.1 else 1
    rule = mhd.partition.dirichlet(alpha, balanced=balanced, min_samples=least)
    sizes = np.bincount(rule(labels, num_clients, 10, rng), minlength=num_clients)
    assert len(sizes) == num_clients and sizes.sum() == 600 and sizes.min() >= least
    if balanced:
        assert sizes.max() - sizes.min() <= 1
    owner = mhd.partition.shards(2)(labels, num_clients, 10, rng)
    sizes = np.bincount(owner, minlength=num_clients)
    assert len(sizes) == num_clients and sizes.max() - sizes.min() <= 2
    classes = [len(np.unique(labels[owner == client])) for client in range(num_clients)]
    # A shard of no more than a class's samples spans at most two classes.
    assert max(classes) <= 4 or 600 / (2 * num_clients) > 60


@pytest.mark.parametrize(("num_clients", "distance"), thinned([(16, 0.819), (32, 0.800)], 2))
def test_the_balanced_dirichlet_partition_is_the_ccl_authors(num_clients, distance):
    """Against what their code gives for α = 0.1 and the labels of CIFAR-10."""
    labels = np.arange(50_000) % 10
    found = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        owner = mhd.partition.dirichlet(0.1, balanced=True)(labels, num_clients, 10, rng)
        counts = counts_of(owner, labels, num_clients)
        assert counts.sum() == len(labels) and np.ptp(counts.sum(axis=1)) <= 1
        classes, bits = (counts > 0).sum(axis=1).mean(), label_entropy(counts).mean()
        found.append((mean_total_variation(counts), classes, bits))
    total_variation, classes, bits = np.mean(found, axis=0)
    assert total_variation == pytest.approx(distance, abs=0.01)
    assert classes == pytest.approx(5.8, abs=0.25) and bits == pytest.approx(1.51, abs=0.06)


def test_dirichlet_shares_have_the_distributions_moments():
    """Shares of one class by one client: mean 1 / K, variance (1/K)(1 − 1/K) / (Kα + 1)."""
    num_clients, alpha, per_class = 4, 0.5, 200
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), per_class)
    shares = []
    for _ in range(200):
        owner = mhd.partition.dirichlet(alpha, min_samples=0)(labels, num_clients, 10, rng)
        shares.append(counts_of(owner, labels, num_clients) / per_class)
    shares = np.array(shares)  # [draws, K, C]
    mean = 1 / num_clients
    np.testing.assert_allclose(shares.mean(axis=(0, 2)), mean, atol=0.02)
    variance = mean * (1 - mean) / (num_clients * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=(0, 2)), variance, rtol=0.1)


def test_samples_of_several_parts_keep_their_kinds():
    rng = np.random.default_rng(0)
    parts = {
        "tokens": rng.integers(0, 9, (20, 5)),
        "image": rng.integers(0, 256, (20, 2, 2, 1)).astype(np.uint8),
        "nested": {"row": rng.normal(size=20)},
    }
    data = mhd.data.arrays(parts, np.arange(20) % 2, test_fraction=0.25)
    kinds = {name: data.inputs[name].dtype for name in ("tokens", "image")}
    assert kinds == {"tokens": np.int32, "image": np.uint8}
    assert data.inputs["nested"]["row"].dtype == np.float32
    assert [len(leaf) for leaf in jax.tree.leaves(data.test_inputs)] == [5, 5, 5]
    assert data.samples(3)["image"].dtype == np.float32 and data.input_shape is None
    with pytest.raises(mhd.ConfigError, match="mlp takes one array, but samples have several"):
        mhd.make_clients(data, 2, "mlp")


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"a": np.zeros((4, 2)), "b": np.zeros((3, 2))}, r"\[3\], one for .* of images\['b'\]"),
        ({"a": np.full((4, 2), np.nan)}, r"images\['a'\] hold NaN"),
        ({"a": np.full((4, 2), 2**40)}, r"images\['a'\] holds integers beyond 32 bits"),
        ({"a": np.array(list("abcd"))}, r"images\['a'\] must be numbers"),
        ({}, "hold no array"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts, why):
    with pytest.raises(mhd.ConfigError, match=why):
        mhd.data.arrays(parts, np.arange(4) % 2)
