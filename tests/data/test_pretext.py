"""Clients that learn from their private images without labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.cli import flags as run_flags
from mhd_jax.core import random
from mhd_jax.core.types import Batch
from mhd_jax.data import preprocessing
from mhd_jax.data.augmentation import Augmentation
from mhd_jax.data.pretext import Rotation, SimCLR
from mhd_jax.training.losses import pretext_cross_entropy
from tests.builders import (
    PLAIN_SGD,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    public_outputs,
    softmax,
    take_steps,
)

K, SIDE, CLASSES = 3, 4, 3


class Flat(nn.Module):
    """One matrix on all pixels: [N, h, w, c] -> [N, 5]."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(5, use_bias=False)(x.reshape(len(x), -1))


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def clients_of(*objectives):
    inputs = np.asarray(images(60, SIDE, SIDE, 1))
    data = mhd.data.arrays(inputs, np.arange(60) % CLASSES)
    return mhd.make_clients(data, len(objectives), Flat(), objectives=objectives, partition="iid")


def clients_with(objective):
    return clients_of("supervised", objective, "supervised").with_defaults(PLAIN_SGD)


def batch_of(clients):
    mask = np.repeat(clients.learns_labels[:, None], 6, axis=1).astype(np.float32)
    return Batch(
        inputs=images(K, 6, SIDE, SIDE, 1, seed=1),
        labels=jnp.arange(K * 6).reshape(K, 6) % CLASSES,
        mask=jnp.asarray(mask),
        public_inputs=images(7, SIDE, SIDE, 1, seed=2),
        public_indices=jnp.zeros(7, jnp.int32),
    )


def step(clients, algorithm="isolated"):
    """The states before and after one step without edges, and its metrics."""
    built, batch = mhd.algorithms.ALGORITHMS[algorithm](), batch_of(clients)
    (before, after), (metrics,) = take_steps(built, clients, jnp.zeros((K, K)), [batch])
    return before, after, metrics


def test_turned_images_turn_back_by_their_label():
    pictures = images(200, 3, 3, 2)
    turned, turns = Rotation().samples(jax.random.key(0), pictures)
    for image, picture, k in zip(np.asarray(turned), np.asarray(pictures), turns, strict=True):
        np.testing.assert_array_equal(np.rot90(image, -int(k)), picture)
    assert np.bincount(turns, minlength=4).min() > 25  # of 50 expected


def test_contrastive_loss_is_nt_xent():
    """Against the paper's formula, pair by pair."""
    task = SimCLR(temperature=0.3)
    views, partners = task.samples(jax.random.key(1), images(5, 6, 6, 1))
    said = np.array(images(10, 8, seed=3))
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    losses = []
    for i in range(10):
        j = (i + 5) % 10
        others = [np.exp(said[i] @ said[n] / 0.3) for n in range(10) if n != i]
        losses.append(-np.log(np.exp(said[i] @ said[j] / 0.3) / np.sum(others)))
    loss = pretext_cross_entropy(task.logits(jnp.asarray(said)), partners)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    assert views.shape == (10, 6, 6, 1)
    assert all(not np.allclose(views[i], views[i + 5]) for i in range(5))


def test_views_without_a_transform_are_the_image():
    pictures = images(4, 5, 5, 1)
    views, _ = SimCLR(Augmentation()).samples(jax.random.key(0), pictures)
    np.testing.assert_array_equal(views, jnp.concatenate([pictures, pictures]))


def test_jitter_is_within_its_strength():
    """A grey image has a brightness only, whose factor is drawn from [1 − s, 1 + s]."""
    change = Augmentation(jitter=0.25)
    keys = jax.random.split(jax.random.key(0), 500)
    grey = jnp.full((2, 2, 3), 0.5)
    plain = preprocessing.PLAIN
    factors = np.asarray(jax.vmap(lambda key: change(key, grey, plain))(keys))[:, 0, 0, 0] / 0.5
    assert 0.75 <= factors.min() < 0.77 and 1.23 < factors.max() <= 1.25
    np.testing.assert_allclose(factors.mean(), 1, atol=0.03)


@pytest.mark.slow
def test_a_step_of_rotation_prediction():
    """The gradient of its cross-entropy, in NumPy."""
    clients = clients_with("rotation")
    state, after, metrics = step(clients)
    before, now = of_client(state, 1), of_client(after, 1)
    purpose = random.Purpose.DROPOUT
    key = random.client_keys(state.key, purpose, state.client_ids, state.step)[1]
    turned, turns = Rotation().samples(jax.random.fold_in(key, 1), batch_of(clients).inputs[1])
    x = np.asarray(turned).reshape(6, -1)
    weights = np.asarray(before["backbone"]["Dense_0"]["kernel"])
    kernel, bias = (np.asarray(before["pretext"][name]) for name in ("kernel", "bias"))
    embeddings = x @ weights
    odds = softmax(embeddings @ kernel + bias)
    error = (odds - np.eye(4)[np.asarray(turns)]) / 6
    expected = {"kernel": embeddings.T @ error, "bias": error.sum(axis=0)}
    moved = jax.tree.map(lambda a, b: np.asarray(a - b) / 0.1, before, now)
    assert_trees_close(moved["pretext"], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        moved["backbone"]["Dense_0"]["kernel"], x.T @ (error @ kernel.T), rtol=1e-3, atol=1e-5
    )
    assert_trees_equal(before["heads"], now["heads"])
    loss = -np.log(odds[np.arange(6), turns]).mean()
    np.testing.assert_allclose(metrics["private_loss"][1], loss, rtol=1e-5)


@pytest.mark.slow
def test_who_hears_nothing_of_it_is_not_touched():
    """Whatever the task of client 1, the others start and step alike."""
    _, alone, _ = step(clients_with("unlabelled"), "mhd")
    for objective in ("rotation", SimCLR(width=3)):
        before, after, _ = step(clients_with(objective), "mhd")
        for i in (0, 2):
            assert_trees_close(of_client(after, i), of_client(alone, i), rtol=1e-5, atol=1e-6)
        start = of_client(before, 1)
        own = start.pop("pretext")
        assert own and jax.tree.structure(start) == jax.tree.structure(of_client(alone, 1))


@pytest.mark.slow
def test_its_embedding_moves_who_learns_from_it():
    """A supervised client's embedding term takes the self-supervised one as a teacher, and back."""
    clients = clients_with("simclr")
    algorithm = mhd.algorithms.mhd(nu_aux=0.0, nu_emb=1.0)
    batch = batch_of(clients)
    state = algorithm.init(jax.random.key(0), clients, batch)
    for student, teacher in ((0, 1), (1, 0)):
        graph = jnp.zeros((K, K)).at[student, teacher].set(1)
        _, metrics = jax.jit(algorithm.train_step)(state, batch, graph)
        unit = public_outputs(state, batch).embeddings
        unit = unit / np.sqrt((unit**2).sum(axis=-1, keepdims=True) + 1e-6)
        distance = ((unit[student] - unit[teacher]) ** 2).sum(axis=-1).mean()
        np.testing.assert_allclose(metrics["emb_loss"][student], distance, rtol=1e-4)


@pytest.mark.slow
def test_a_run_in_which_two_have_a_pretext_task():
    contrast = SimCLR(Augmentation(jitter=0.4))
    clients = clients_of("supervised", "supervised", "rotation", contrast)
    settings = {"steps": 4, "batch_size": 4, "public_batch_size": 4}
    summary = mhd.simulate("complete", clients, **settings).summary
    known = [client["beta_priv"]["main"] is not None for client in summary["per_client"]]
    assert known == [True, True, False, False]
    assert summary["settings"]["clients"]["objectives"][:3] == ["supervised"] * 2 + ["Rotation()"]
    pooled = clients.pooled()
    assert len(pooled.groups) == 1 and pooled.groups[0].pretext is None


@pytest.mark.parametrize(
    ("shape", "why"),
    [((4,), "rotation is for images"), ((4, 6, 1), "must be square, but they have 4 × 6 pixels")],
)
def test_samples_that_a_task_cannot_use_are_refused(shape, why):
    data = mhd.data.arrays(np.zeros((60, *shape), np.float32), np.arange(60) % CLASSES)
    with pytest.raises(mhd.ConfigError, match=why):
        mhd.make_clients(data, 3, objectives={0: "rotation"}, partition="iid")


def test_averages_of_parameters_name_who_has_another_head():
    clients = clients_with("rotation")
    with pytest.raises(mhd.ConfigError, match="clients 1: flat for rotation"):
        mhd.algorithms.fedavg().init(jax.random.key(0), clients, batch_of(clients))


@dataclasses.dataclass(frozen=True)
class Bright:
    """Tells which images are brighter than a number, or breaks what a task promises."""

    fault: str = ""
    name = "bright"
    views = 1
    square = False

    @property
    def head(self):
        return nn.Dense(2)

    def samples(self, key, images):
        labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype(jnp.int32)
        return {
            "beyond": lambda: (images, labels + 1),
            "frozen": lambda: (images * np.random.default_rng().random(), labels),
            "unequal": lambda: (images, labels[1:]),
            "floats": lambda: (images, labels / 2),
            "cut": lambda: (images[:, 1:], labels),
            "alone": lambda: images,
        }.get(self.fault, lambda: (images, labels))()

    def logits(self, outputs):
        return outputs


class Melted(Bright):
    """Cannot be hashed, as a dataclass that is not frozen."""

    __hash__ = None


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (
            Bright("beyond"),
            r"bright has 2 logits, for labels in 0 … 1, but makes labels in \d … 2;",
        ),
        (Bright("frozen"), "bright is another one each time it is called"),
        (Bright("unequal"), r"one integer label .* are int32 \[15\], and logits \[16, 2\]"),
        (Bright("floats"), r"one integer label .* are float32 \[16\]"),
        (Bright("cut"), r"bright fails for images \[16, 4, 4, 1\] \(.*; its samples and logits"),
        (Bright("alone"), "bright fails for images"),
        (Melted(), "the objective bright cannot be hashed .* make its dataclass frozen"),
        ([1], r"unknown objective \[1\]; choose one of"),
        (Bright(), None),
    ],
)
def test_tasks_of_ones_own_are_told_what_they_break(objective, sentence):
    if sentence is None:
        assert clients_with(objective).objectives[1] == "bright"
    else:
        with pytest.raises(mhd.ConfigError, match=sentence):
            clients_with(objective)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"width": 0}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(mhd.ConfigError):
        SimCLR(**options)


def test_views_of_the_command_line():
    with flagsaver.as_parsed(contrastive_views="flip", objectives="supervised:7,simclr:1"):
        (group,) = [g for g in run_flags.settings().clients(0).groups if g.pretext]
    assert group.pretext == SimCLR(Augmentation(flip=True)) and group.members == (7,)
    settings = dataclasses.replace(run_flags.settings(), contrastive_views="flip")
    with pytest.raises(mhd.ConfigError, match="nobody has it"):
        settings.clients(0)
