"""Backbones and normalisation: parameter counts, shapes, numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from scipy import stats

import mhd_jax as mhd
from mhd_jax.core.client_axis import Execution, under
from mhd_jax.models import CNN, MODELS, VGG, ClientModel, MobileNetV2, ResNet, ViT, build_backbone
from mhd_jax.models.mobilenet import InvertedResidual
from mhd_jax.models.norms import EvoNormS0, GroupNorm, LayerNorm, relu
from mhd_jax.models.resnet import Block
from mhd_jax.models.small import halve
from tests.builders import assert_trees_close, short, thinned


def parameter_count(name, norm, shape, num_classes, num_heads=1):
    model = ClientModel(build_backbone(name, norm, shape), num_heads, num_classes)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *shape)))
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))


def cifar_resnet_count(n):
    """6n + 2 layers with projected shortcuts; the paper's 0.46 and 0.85 million for n = 5 and 9."""
    convolutions = 432 + 2304 * 2 * n + 4608 + 9216 * (2 * n - 1) + 18_432 + 36_864 * (2 * n - 1)
    shortcuts, norms = 512 + 2048, 2 * (16 + 32 + 64) * (2 * n + 1)
    return convolutions + shortcuts + norms + 650


EMBEDDINGS = {
    "mlp": 64,
    "mlp_small": 64,
    "mlp_large": 64,
    "bag_of_tokens": 64,
    "cnn": 64,
    "cnn_strided": 128,
    "cnn_strided_thin": 64,
    "lenet5": 84,
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet56"), 64),
    **dict.fromkeys(("resnet18", "resnet34", "vgg11"), 512),
    "resnet50": 2048,
    "vgg11_thin": 128,
    **dict.fromkeys(("mobilenetv2", "mobilenetv2_cifar"), 1280),
    "vit_tiny": 192,
}


@pytest.mark.parametrize(
    ("name", "norm", "shape", "classes", "expected"),
    thinned(
        [
            # 64·128 + 128 and 128·64 + 64, two layer norms of 2·128 and 2·64, 64·10 + 10.
            ("mlp", "layer", (8, 8, 1), 10, 8320 + 8256 + 384 + 650),
            # 9·(3·32 + 32·64 + 64·128) weights, 224 scales and shifts, 128·10 + 10.
            ("cnn_strided", "group", (32, 32, 3), 10, 9 * 10_336 + 2 * 224 + 1290),
            ("cnn_strided_thin", "group", (32, 32, 3), 10, 9 * 2_608 + 2 * 112 + 650),
            ("lenet5", None, (28, 28, 1), 10, 61_706),  # the CCL paper's count
            ("resnet20", "evonorm", (32, 32, 3), 10, 272_474),  # the CCL paper's count
            # 3×3 convolutions 432 + 4608 + 13824 + 55296, shortcuts 512 + 2048, 336 channels' norms, 650.
            ("resnet8", "evonorm", (32, 32, 3), 10, 76_720 + 672 + 650),
            # 432 + 14·(3×3 convolutions) …: as above, with v in each of the 21 norms' 784 channels.
            ("resnet20", "evonorm_s0", (32, 32, 3), 10, 272_474 + 784),
            ("resnet32", "batch", (32, 32, 3), 10, cifar_resnet_count(5)),
            ("resnet56", "batch", (32, 32, 3), 10, cifar_resnet_count(9)),
            ("resnet18", "batch", (224, 224, 3), 1000, 11_689_512),  # torchvision's counts
            ("resnet34", "batch", (224, 224, 3), 1000, 21_797_672),
            ("resnet50", "batch", (224, 224, 3), 1000, 25_557_032),
            ("mobilenetv2", "batch", (224, 224, 3), 1000, 3_504_872),
            ("mobilenetv2", "batch", (32, 32, 3), 10, 2_236_682),  # of 1281·990 weights fewer
            # Beside those: 1×1 from 32 to 32 channels, and shortcuts 32·16 + 16·24 + 64·96 + 160·320,
            # each with as many norms' scales and shifts as it has outputs, 32 + 16 + 24 + 96 + 320.
            ("mobilenetv2_cifar", "evonorm", (32, 32, 3), 10, 2_236_682 + 1024 + 58_240 + 2 * 488),
            # 9·(3·16 + 16·32 + 32·64 + 64² + 64·128 + 3·128²) weights, 688 biases, scales and shifts.
            ("vgg11_thin", "evonorm", (32, 32, 3), 10, 9 * 64_048 + 3 * 688 + 1290),
            # 9·(3·64 + 64·128 + 128·256 + 256² + 256·512 + 3·512²) weights, 2752 biases, 512·10 + 10.
            ("vgg11", "none", (32, 32, 3), 10, 9 * 1_024_192 + 2752 + 5130),
            # With as many scales and shifts, torchvision's vgg11_bn before its classifier.
            ("vgg11", "batch", (224, 224, 3), 10, 9_225_984 + 5130),
            ("vit_tiny", None, (224, 224, 3), 1000, 5_717_416),  # DeiT-Ti's count
            # Patches 48·192 + 192, class token 192, positions 65·192; 12 blocks of two layer norms 768,
            # attention 4·(192² + 192) and perceptron 2·192·768 + 768 + 192; layer norm 384, 1930.
            ("vit_tiny", None, (32, 32, 3), 10, 9408 + 192 + 12_480 + 12 * 444_864 + 384 + 1930),
        ],
        3,
    ),
)
def test_parameter_counts(name, norm, shape, classes, expected):
    assert parameter_count(name, norm, shape, classes) == expected


def test_heads_are_counted_by_their_own():
    one, four = (parameter_count("mlp", None, (8, 8, 1), 10, h) for h in (1, 4))
    assert four - one == 3 * 650


@pytest.mark.parametrize(
    "name", short(MODELS, "mlp", "bag_of_tokens", "cnn", "resnet8", "vgg11_thin", "vit_tiny")
)
def test_every_backbone_and_norm_embeds_small_images(name):
    side = max(8, MODELS[name].least_side)
    images = jnp.zeros((3, side, side, 1))
    x, size = (images[..., 0, 0].astype(int), 9) if MODELS[name].tokens else (images, None)
    for norm in MODELS[name].norms:
        backbone = build_backbone(name, norm, x.shape[1:], size)
        embeddings, variables = jax.eval_shape(
            lambda x, b=backbone: b.init_with_output(jax.random.key(0), x, train=False), x
        )
        assert embeddings.shape == (3, EMBEDDINGS[name])
        assert ("batch_stats" in variables) == (norm == "batch")


SMALL = {
    "bottlenecks": ResNet((1, 1), (8, 16), bottleneck=True),
    "vgg": VGG(((8,), (8, 16)), num_groups=4),
    "mobilenet": MobileNetV2(stages=((2, 8, 1, 1),)),
    "vit": ViT(4, width=12, depth=1, num_heads=3, dropout=0.1),
    "cnn": CNN(),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_backbone_leaves_bfloat16_on_the_way(name):
    x = jnp.zeros((3, 8, 8, 1))
    params = jax.eval_shape(SMALL[name].init, jax.random.key(0), x)
    rough = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, "bfloat16"), (params, x))
    assert jax.eval_shape(SMALL[name].apply, *rough).dtype == "bfloat16"


@pytest.mark.parametrize("name", short(["mobilenet", "vit", "cnn"], "cnn"))
def test_many_clients_of_an_architecture_learn(name):
    model = ClientModel(SMALL[name], 1, 3)
    inputs = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 1))

    def loss(params, inputs):
        logits = model.apply(params, {}, inputs, jax.random.key(2))[0].logits[:, 0]
        return -jax.nn.log_softmax(logits)[:, 1].mean()

    def step(params, _):
        losses, gradients = jax.vmap(jax.value_and_grad(loss))(params, inputs)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)
        return params, (losses, gradients)

    @jax.jit
    def train(keys):
        params, _ = jax.vmap(model.init)(keys, inputs)
        return jax.lax.scan(step, params, length=2)[1]

    losses, gradients = train(jax.random.split(jax.random.key(1), 2))
    assert (losses[1] < losses[0]).all() and losses[0, 0] != losses[0, 1]
    assert all(np.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("gate", ["hard", "sigmoid"])
def test_evonorm_equals_its_equation(gate):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)
    scale, bias, v = np.linspace([0.5, -1, 0.2], [1.5, 1, 2], 8).T
    params = {"scale": scale, "bias": bias} | ({"v": v} if gate == "sigmoid" else {})
    module = EvoNormS0(gate, num_groups=4)
    actual = module.apply({"params": jax.tree.map(jnp.asarray, params)}, x)
    gated = x * np.clip(x / 6 + 0.5, 0, 1) if gate == "hard" else x / (1 + np.exp(-v * x))
    variance = x.reshape(2, 3, 5, 4, 2).var(axis=(1, 2, 4)).repeat(2, axis=1)[:, None, None]
    expected = gated / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


NORMS = {
    "group": (GroupNorm(num_groups=4), nn.GroupNorm(num_groups=4)),
    "layer": (LayerNorm(), nn.LayerNorm()),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "dtype"), [((3, 4, 5, 8), "float32"), ((3, 8), "bfloat16")])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_group_and_layer_norm_are_flaxs(norm, shape, dtype, platform):
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(1, 2, size=shape), dtype) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=8), dtype) for _ in range(2))

    def all_of(module):
        def function(x, scale, bias):
            return module.apply({"params": {"scale": scale, "bias": bias}}, x)

        y, pull_back = jax.vjp(function, x, scale, bias)
        return y, *pull_back(cotangent)

    with under(Execution(platform=platform)):
        own, theirs = map(all_of, NORMS[norm])
    tolerance = 2e-5 if dtype == "float32" else 3e-2
    for found, expected in zip(own, theirs, strict=True):
        assert found.dtype == expected.dtype
        scale = jnp.abs(expected).max().astype("float32")
        np.testing.assert_allclose(
            *(a.astype("float32") for a in (found, expected)), atol=tolerance * scale
        )


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_relu_is_the_positive_part(platform):
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0, jnp.inf, -jnp.inf, jnp.nan])
    with under(Execution(platform=platform)):
        y, pull_back = jax.vjp(relu, x)
        _, tangent = jax.jvp(relu, (x,), (jnp.full(7, 5.0),))
    np.testing.assert_array_equal(y, [0, 0, 0, 3, np.inf, 0, np.nan])  # NaN is not hidden
    for gradient in (*pull_back(jnp.full(7, 5.0)), tangent):
        np.testing.assert_array_equal(gradient, [0, 0, 0, 5, 5, 0, 0])


@pytest.mark.parametrize("name", short(["resnet18", "resnet50", "mobilenetv2"], "resnet50"))
def test_stems_follow_the_resolution(name):
    """The last maps have 4 × 4 positions for CIFAR and 7 × 7 for ImageNet."""
    for side, positions in ((32, 4), (224, 7)):
        backbone = build_backbone(name, None, (side, side, 3))
        _, variables = jax.eval_shape(
            lambda x, b=backbone: b.init_with_output(
                jax.random.key(0), x, capture_intermediates=True
            ),
            jnp.zeros((1, side, side, 3)),
        )
        maps = [a.shape for a in jax.tree.leaves(variables["intermediates"]) if a.ndim == 4]
        assert (1, positions, positions, EMBEDDINGS[name]) in maps
        assert min(shape[1] for shape in maps) == positions


def test_bottlenecks_see_every_pixel_before_they_stride():
    block = Block(4, 2, bottleneck=True, norm="batch", num_groups=0)
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 16))

    @jax.jit
    def gradient(x):
        variables = block.init(jax.random.key(1), x, train=False)
        return jax.grad(lambda x: (block.apply(variables, x, train=False) ** 2).sum())(x)

    assert (jnp.abs(gradient(x)).max(axis=(0, 3)) > 1e-6).all()


def test_bottlenecks_of_mobilenet_are_linear_and_its_activations_end_at_six():
    block = InvertedResidual(2, 8, 1, "batch")

    @jax.jit
    def outputs(x):
        variables = block.init(jax.random.key(1), x, train=False)
        return block.apply(variables, x, train=False, capture_intermediates=True)

    y, captured = outputs(100 * jax.random.normal(jax.random.key(0), (1, 4, 4, 16)))
    assert (y < 0).any() and (y > 6).any()  # 16 channels in and 8 out: nothing is added
    for layer in ("ConvNorm_0", "ConvNorm_1"):
        inner = captured["intermediates"][layer]["__call__"][0]
        assert (inner.min(), inner.max()) == (0, 6)


def test_patches_equal_a_strided_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    vit = ViT(4, width=6, depth=0)
    convolution = nn.Conv(6, (4, 4), strides=(4, 4), padding="VALID")

    @jax.jit
    def both(x):
        variables = vit.init(jax.random.key(1), x)
        _, captured = vit.apply(variables, x, capture_intermediates=True)
        dense = variables["params"]["Dense_0"]
        params = {"kernel": dense["kernel"].reshape(4, 4, 3, 6), "bias": dense["bias"]}
        return captured["intermediates"]["Dense_0"], convolution.apply({"params": params}, x)

    actual, expected = both(x)
    np.testing.assert_allclose(
        actual["__call__"][0], expected.reshape(2, 6, 6), rtol=1e-4, atol=1e-5
    )


def test_transformers_are_no_convolutional_clients_and_random_with_dropout_only():
    x = jnp.zeros((1, 8, 8, 3))
    for dropout in (0.0, 0.1):
        model = ClientModel(ViT(4, width=6, depth=1, dropout=dropout), 2, 3)
        params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
        assert max(p.ndim for p in jax.tree.leaves(params)) == 3
        assert model.has_modes(params, {}, x) == (dropout > 0)


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
    largest = windows == windows.max(axis=(2, 4), keepdims=True)
    assert largest[given != 0].all()


def test_images_too_small_for_a_net_are_refused():
    data = mhd.data.arrays(np.zeros((20, 2, 3, 1)), np.arange(20) % 2)
    with pytest.raises(mhd.ConfigError, match="at least 4 × 4 pixels, but samples have 2 × 3"):
        mhd.make_clients(data, 2, "cnn")
    with pytest.raises(mhd.ConfigError, match="vgg11 needs images of at least 32 × 32"):
        build_backbone("vgg11", None, (28, 28, 1))


@pytest.mark.parametrize(("shape", "patch"), [((30, 32, 3), 4), ((96, 100, 3), 16)])
def test_images_that_patches_do_not_fit_are_refused(shape, patch):
    sentence = f"patches of {patch} × {patch} pixels, which do not divide {shape[0]} × {shape[1]}"
    with pytest.raises(mhd.ConfigError, match=sentence):
        build_backbone("vit_tiny", None, shape)


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


FAN_INS = {  # of every layer with a bias; all other kernels are convolutions' [h, w, in, out]
    "lenet5": {"Conv_0": 25, "Conv_1": 25 * 6, "Dense_0": 400, "Dense_1": 120, "heads": 84},
    "cnn": {"Dense_0": 7 * 7 * 32, "heads": 64},
    "resnet8": {"heads": 64},
}


def expected_start(name, initialization, path, shape):
    """The distribution of one layer's kernel or bias; None for biases that start at 0."""
    layer, kind = path[-2:]
    if initialization == "he_fan_out" and layer.startswith("Conv"):
        if kind == "bias":
            return None
        height, width, _, channels = shape
        return stats.norm(scale=np.sqrt(2 / (height * width * channels)))
    fan_in = FAN_INS[name].get(layer) or np.prod(shape[:3])
    bound = 1 / np.sqrt(fan_in)
    return stats.uniform(-bound, 2 * bound)


@pytest.mark.parametrize("initialization", ["pytorch", "he_fan_out"])
@pytest.mark.parametrize("name", short(FAN_INS, next(iter(FAN_INS))))
def test_initializations_by_name(name, initialization):
    """PyTorch's default or He's normal distribution; what normalises stays 1 and 0."""
    shape = (28, 28, 1)
    own = ClientModel(build_backbone(name, None, shape), 3, 50)
    model = dataclasses.replace(own, initialization=initialization)
    key, inputs = jax.random.key(5), jnp.zeros((2, *shape))
    params, _ = jax.jit(model.init)(key, inputs)
    before = flatten_dict(jax.jit(own.init)(key, inputs)[0])
    flat = flatten_dict(params)
    assert jax.tree.map(jnp.shape, flat) == jax.tree.map(jnp.shape, before)
    firsts = []
    for path, values in flat.items():
        if "Norm" in path[-2]:
            np.testing.assert_array_equal(values, before[path])
            continue
        expected = expected_start(name, initialization, path, values.shape)
        if expected is None:
            assert (values == 0).all(), path
            continue
        assert stats.kstest(values.ravel(), expected.cdf).pvalue > 1e-3, path
        firsts.append(tuple(np.ravel(values)[:2]))
    assert flat["heads", "kernel"].shape == (3, flat["heads", "kernel"].shape[1], 50)
    assert len(set(firsts)) == len(firsts)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4)(x.reshape(len(x), -1))


def test_an_initialization_is_of_the_models_that_know_it():
    data = mhd.data.load("digits")
    clients = mhd.make_clients(data, 3, ["mlp", Flat(), "cnn"], initialization="pytorch")
    assert [group.initialization for group in clients.groups] == ["pytorch", None, "pytorch"]
    assert clients.settings["initialization"] == "pytorch"
    assert "initialization" not in mhd.make_clients(data, 3).settings
    for model, given, sentence in (
        ("mlp", "torch", "mlp does not know .* 'torch'; choose one of pytorch, he_fan_out"),
        ("vit_tiny", "pytorch", "vit_tiny does not know .* 'pytorch'; leave it out"),
        (Flat(), "pytorch", "of models given by name, but there are none"),
    ):
        with pytest.raises(mhd.ConfigError, match=sentence):
            mhd.make_clients(data, 3, model, initialization=given)


@pytest.mark.parametrize("norm", short(["group", "batch", "evonorm_s0"], "batch"))
def test_backbones_compute_in_bfloat16_and_keep_their_parameters(norm):
    shape = (8, 8, 1)
    exact = ClientModel(build_backbone("cnn", norm, shape), 2, 10)
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
