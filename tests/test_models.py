"""Backbones and normalisation: parameter counts, shapes, numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.clients import build_backbone
from mhd_jax.models import MODELS, ClientModel
from mhd_jax.models.norms import EvoNormS0
from mhd_jax.models.small import halve
from tests.conftest import assert_trees_close


def parameter_count(name, norm, shape, num_classes, num_heads=1):
    model = ClientModel(build_backbone(name, norm, shape), num_heads, num_classes)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *shape)))
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "norm", "shape", "classes", "expected"),
    [
        # 64·128 + 128 and 128·64 + 64, two layer norms of 2·128 and 2·64, 64·10 + 10.
        ("mlp", "layer", (8, 8, 1), 10, 8320 + 8256 + 384 + 650),
        ("lenet5", None, (28, 28, 1), 10, 61_706),  # the CCL paper's count
        ("resnet20", "evonorm", (32, 32, 3), 10, 272_474),  # the CCL paper's count
        # 3×3 convolutions 432 + 4608 + 13824 + 55296, shortcuts 512 + 2048, 336 channels' norms, 650.
        ("resnet8", "evonorm", (32, 32, 3), 10, 76_720 + 672 + 650),
        # 432 + 14·(3×3 convolutions) …: as above, with v in each of the 21 norms' 784 channels.
        ("resnet20", "evonorm_s0", (32, 32, 3), 10, 272_474 + 784),
        ("resnet18", "batch", (224, 224, 3), 1000, 11_689_512),  # torchvision's counts
        ("resnet34", "batch", (224, 224, 3), 1000, 21_797_672),
    ],
)
def test_parameter_counts(name, norm, shape, classes, expected):
    assert parameter_count(name, norm, shape, classes) == expected


def test_heads_are_counted_by_their_own():
    one, four = (parameter_count("mlp", None, (8, 8, 1), 10, h) for h in (1, 4))
    assert four - one == 3 * 650


@pytest.mark.parametrize("name", MODELS)
def test_every_backbone_and_norm_embeds_digits(name):
    for norm in MODELS[name].norms:
        backbone = build_backbone(name, norm, (8, 8, 1))
        embeddings, variables = jax.eval_shape(
            lambda x, b=backbone: b.init_with_output(jax.random.key(0), x, train=False),
            jnp.zeros((3, 8, 8, 1)),
        )
        assert embeddings.ndim == 2 and embeddings.shape[0] == 3
        assert ("batch_stats" in variables) == (norm == "batch")


def test_a_small_net_runs_and_learns_from_images():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    model = ClientModel(build_backbone("cnn", None, (8, 8, 1)), 2, 3)
    params, stats = model.init(jax.random.key(1), x)

    def loss(params):
        return jnp.square(model.apply(params, stats, x, jax.random.key(0))[0].logits).mean()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(g).all() and (g != 0).any() for g in gradients)


@pytest.mark.parametrize("gate", ["hard", "sigmoid"])
def test_evonorm_equals_its_equation(gate):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)
    module = EvoNormS0(gate, num_groups=4)
    params = {"scale": np.linspace(0.5, 1.5, 8), "bias": np.linspace(-1, 1, 8)}
    if gate == "sigmoid":
        params["v"] = np.linspace(0.2, 2, 8)
    actual = module.apply({"params": {k: jnp.asarray(v) for k, v in params.items()}}, x)
    expected = np.zeros_like(x)
    for n in range(2):
        for c in range(8):
            group = x[n, :, :, c // 2 * 2 : c // 2 * 2 + 2]
            own = x[n, :, :, c]
            if gate == "hard":
                gated = own * np.clip(own / 6 + 0.5, 0, 1)
            else:
                gated = own / (1 + np.exp(-params["v"][c] * own))
            expected[n, :, :, c] = (
                gated / np.sqrt(group.var() + 1e-5) * params["scale"][c] + params["bias"][c]
            )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_stems_follow_the_resolution():
    small = build_backbone("resnet18", None, (32, 32, 3))
    large = build_backbone("resnet18", None, (224, 224, 3))
    assert (small.stem, large.stem) == ("small", "imagenet")


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return {"logits": nn.Dense(3)(x)}


class Images(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Conv(3, (3, 3))(x)


@pytest.mark.parametrize(
    ("backbone", "inputs", "sentence"),
    [
        (Classifier(), jnp.ones((2, 4)), "Classifier must map a batch to an embedding .* dict"),
        (Images(), jnp.ones((2, 4, 4, 1)), r"Images .* shape \[2, 4, 4, 3\]; leave the classifier"),
    ],
)
def test_backbones_that_return_no_embedding_are_refused(backbone, inputs, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        ClientModel(backbone, 1, 3).init(jax.random.key(0), inputs)


def test_halving_takes_maxima_and_gives_each_gradient_to_one_entry():
    x = np.random.default_rng(0).integers(0, 3, (2, 5, 6, 3)).astype(np.float32)  # many ties
    windows = x[:, :4].reshape(2, 2, 2, 3, 2, 3)
    y, pull_back = jax.vjp(halve, jnp.asarray(x))
    np.testing.assert_array_equal(y, windows.max(axis=(2, 4)))
    g = 1 + np.arange(y.size, dtype=np.float32).reshape(y.shape)
    (dx,) = pull_back(jnp.asarray(g))
    dx = np.asarray(dx)
    assert not dx[:, 4:].any()
    given = dx[:, :4].reshape(2, 2, 2, 3, 2, 3)
    np.testing.assert_array_equal(given.sum(axis=(2, 4)), g)
    assert ((given != 0).sum(axis=(2, 4)) == 1).all()
    assert (
        windows[given != 0]
        == windows.max(axis=(2, 4), keepdims=True).repeat(2, 2).repeat(2, 4)[given != 0]
    ).all()


def test_images_too_small_for_a_net_are_refused():
    data = mhd.data.arrays(np.zeros((20, 2, 3, 1)), np.arange(20) % 2)
    with pytest.raises(mhd.ConfigError, match="at least 4 × 4 pixels, but samples have 2 × 3"):
        mhd.make_clients(data, 2, "cnn")


def test_clients_start_from_different_parameters():
    clients = mhd.make_clients(mhd.data.load("digits"), 3).with_defaults(mhd.optim.SGD().build(1))
    batch = mhd.Batch(
        jnp.ones((3, 2, 8, 8, 1)), jnp.zeros((3, 2), int), jnp.ones((3, 2)), None, jnp.zeros(0)
    )
    state = mhd.algorithms.mhd().init(jax.random.key(0), clients, batch)
    kernel = state.groups[0].params["heads"]["kernel"]
    assert kernel.shape == (3, 4, 64, 10)
    flat = np.asarray(kernel).reshape(12, -1)
    assert (np.abs(np.corrcoef(flat) - np.eye(12)) < 0.2).all()
    np.testing.assert_allclose(flat.std(axis=1), np.sqrt(1 / 64), rtol=0.15)  # lecun_normal


@pytest.mark.parametrize(("name", "norm"), [("cnn", norm) for norm in MODELS["cnn"].norms])
def test_backbones_compute_in_bfloat16_and_keep_their_parameters(name, norm):
    shape = (8, 8, 1)
    exact = ClientModel(build_backbone(name, norm, shape), 2, 10)
    rough = dataclasses.replace(exact, compute_dtype="bfloat16")
    inputs = jax.random.normal(jax.random.key(1), (16, *shape))
    params, stats = jax.jit(exact.init)(jax.random.key(0), inputs)
    key = jax.random.key(2)

    def loss(params, model):
        outputs, updated = model.apply(params, stats, inputs, key)
        return jnp.square(outputs.logits).mean(), (outputs, updated)

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    gradients, (outputs, updated) = gradient(params, rough)
    true_gradients, (true_outputs, true_updated) = gradient(params, exact)
    for tree in (gradients, outputs, updated):
        assert {a.dtype for a in jax.tree.leaves(tree)} <= {jnp.dtype("float32")}
    assert_trees_close(updated, true_updated, rtol=0.05, atol=0.01)
    difference = np.linalg.norm(outputs.logits - true_outputs.logits)
    assert 0 < difference < 0.05 * np.linalg.norm(true_outputs.logits)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(true_gradients), strict=True):
        assert np.linalg.norm(a - b) < 0.25 * np.linalg.norm(b) + 1e-4
    text = jax.jit(lambda p: rough.apply(p, stats, inputs, key)).lower(params).as_text()
    assert "bf16" in text
