"""The per-client convolution equals JAX's own, and its gradients to second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from mhd_jax.core.client_axis import Execution, default_platform, under
from mhd_jax.models.conv import conv_general_dilated
from tests.builders import assert_trees_close, thinned

NHWC = ("NHWC", "HWIO", "NHWC")
# kernel, strides, padding, dilation, groups, input size, channels, features
CASES = {
    "3x3": ((3, 3), (1, 1), "SAME", (1, 1), 1, (6, 6), 4, 6),
    "valid": ((3, 3), (1, 1), "VALID", (1, 1), 1, (6, 5), 4, 6),
    "stride 2, same": ((3, 3), (2, 2), "SAME", (1, 1), 1, (8, 8), 4, 6),
    "stride 2, explicit": ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1, (8, 7), 4, 6),
    "strided 1x1": ((1, 1), (2, 2), "VALID", (1, 1), 1, (8, 7), 4, 6),
    "stem": ((7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1, (12, 12), 3, 8),
    "stride 3, uneven": ((2, 3), (3, 2), ((0, 1), (2, 0)), (1, 1), 1, (9, 8), 2, 3),
    "dilated": ((3, 3), (1, 1), "SAME", (2, 2), 1, (7, 7), 4, 6),
    "dilated and strided": ((3, 2), (2, 1), "VALID", (2, 3), 1, (9, 9), 4, 6),
    "groups": ((3, 3), (1, 1), "SAME", (1, 1), 2, (6, 6), 4, 6),
    "depthwise, stride 2": ((3, 3), (2, 2), "SAME", (1, 1), 4, (6, 6), 4, 4),
    "depthwise, many channels": ((3, 3), (1, 1), ((1, 1), (0, 2)), (2, 1), 64, (6, 5), 64, 64),
    "depthwise, two features a channel": ((3, 3), (1, 1), "SAME", (1, 1), 4, (6, 6), 4, 8),
    "columns in pairs": ((3, 3), (1, 1), "SAME", (1, 1), 1, (4, 6), 16, 5),
    "many samples": ((3, 3), (1, 1), "SAME", (1, 1), 1, (16, 16), 6, 5),
    "many samples, stride 2": ((3, 2), (2, 1), "SAME", (1, 1), 1, (24, 26), 3, 17),
    "many samples, strided 1x1": ((1, 1), (1, 2), ((1, 0), (0, 2)), (1, 1), 1, (16, 16), 8, 5),
    "more padding than kernel": ((2, 2), (1, 1), ((3, 2), (0, 3)), (1, 1), 1, (4, 4), 2, 3),
    "small image": ((3, 3), (1, 1), "SAME", (1, 1), 1, (2, 2), 4, 6),
    "small image, uneven": ((4, 5), (1, 1), ((3, 1), (0, 4)), (1, 1), 1, (3, 2), 4, 6),
    "small image, stride 2": ((3, 3), (2, 2), "SAME", (1, 1), 1, (2, 2), 4, 6),
}
# Many clients on CPUs are a loop over one, so one alone, and what clients share (folded into one
# wider convolution, but broadcast where there are groups), are tried in few of the cases.
FEW = ("3x3", "stem", "stride 3, uneven", "dilated and strided", "groups")
K, N = 3, 2
MANY = {"many samples": 50, "many samples, stride 2": 36, "many samples, strided 1x1": 34}


def functions(case):
    """Our convolution and JAX's, and matching arguments of one client in float64."""
    kernel, strides, padding, dilation, groups, size, channels, features = CASES[case]

    def call(conv):
        form = {"rhs_dilation": dilation, "feature_group_count": groups, "dimension_numbers": NHWC}
        return lambda x, w: conv(x, w, strides, padding, **form)

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(K, MANY.get(case, N), *size, channels)))
    w = jnp.asarray(rng.normal(size=(K, *kernel, channels // groups, features)))
    return call(conv_general_dilated), call(lax.conv_general_dilated), x, w


def assert_close(actual, expected):
    scale = max(float(jnp.abs(e).max()) for e in jax.tree.leaves(expected))
    assert_trees_close(actual, expected, rtol=1e-12, atol=1e-12 * scale)


def up_to_second_order(conv):
    """The convolution, its gradients, and those of a scalar of them, which need every rule of the rules."""

    def inner(x, w):
        return jnp.sin(conv(x, w)).sum()

    def outer(x, w):
        gx, gw = jax.grad(inner, argnums=(0, 1))(x, w)
        return (gx**2).sum() + jnp.cos(gw).sum()

    return lambda x, w: [conv(x, w), *(jax.grad(f, argnums=(0, 1))(x, w) for f in (inner, outer))]


@pytest.mark.parametrize(
    ("case", "axes"),
    thinned(
        [
            *((case, (0, 0)) for case in CASES),
            *(
                pytest.param(case, axes, marks=[] if case == FEW[0] else [pytest.mark.slow])
                for case in FEW
                for axes in ((0, None), (None, 0), (None, None))
            ),
        ],
        3,
    ),
)
def test_one_client_and_many(case, axes, float64):
    ours, plain, x, w = functions(case)
    x, w = (a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True))
    mapped = (lambda f: jax.vmap(f, axes)) if 0 in axes else lambda f: f
    found, expected = (jax.jit(mapped(up_to_second_order(conv)))(x, w) for conv in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("small image")])
@pytest.mark.parametrize("axes", [(0, 0), (None, 0)])
def test_forms_for_tpus(case, axes, float64):
    ours, plain, x, w = functions(case)
    x, w = (a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True))
    with under(Execution(platform="tpu")):
        found = jax.jit(jax.vmap(up_to_second_order(ours), axes))(x, w)
    expected = jax.jit(jax.vmap(up_to_second_order(plain), axes))(x, w)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_gradients_of_mapped_sums_and_nested_maps(float64):
    ours, plain, x, w = functions("3x3")
    both = jnp.stack([x, 2 * x])
    for f in (
        lambda conv: jax.vmap(jax.vmap(conv), (0, None))(both, w),
        lambda conv: jax.grad(lambda w: jnp.sin(jax.vmap(conv)(x, w)).sum())(w),
        lambda conv: jax.grad(lambda w: jnp.sin(jax.vmap(conv, (None, 0))(x[0], w)).sum())(w),
    ):
        assert_close(jax.jit(lambda f=f: f(ours))(), jax.jit(lambda f=f: f(plain))())


def test_it_serves_flax_and_passes_on_what_it_does_not_know():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    for settings in ({"strides": 2}, {"input_dilation": 2, "padding": 1}, {"padding": "CIRCULAR"}):
        plain = nn.Conv(4, (3, 3), **settings)
        ours = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **settings)
        variables = plain.init(jax.random.key(1), x)
        np.testing.assert_allclose(
            ours.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5
        )
    line = nn.Conv(4, (3,), conv_general_dilated=conv_general_dilated)
    assert line.init_with_output(jax.random.key(0), x[:, 0])[0].shape == (2, 8, 4)


def test_on_cpus_loops_hold_plain_convolutions_only():
    """Inside a loop XLA's CPU backend leaves other forms slow: groups, other layouts, zeros between inputs."""
    if jax.default_backend() != "cpu":
        pytest.skip("the form of the convolutions matters on CPUs")
    ours, _, x, w = functions("stride 2, same")
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)

    def steps(w):
        grad = jax.vmap(jax.grad(lambda w, x: (ours(x, w) ** 2).sum()))
        return lax.fori_loop(0, 3, lambda _, w: w - 0.1 * grad(w, x), w)

    text = jax.jit(steps).lower(w).compile().as_text()
    convolutions = [line for line in text.splitlines() if " convolution(" in line]
    assert convolutions
    for line in convolutions:
        assert "dim_labels=b01f_01io->b01f" in line and "feature_group_count" not in line
        assert "lhs_dilate" not in line
        # Strides dilate the kernel of the kernel's gradient, which then has none of its own.
        assert "rhs_dilate" not in line or "stride=" not in line


def test_the_form_is_the_target_platforms_whatever_this_machine_is():
    """One grouped convolution for accelerators, a loop over clients for CPUs, in either order."""
    x, w = jnp.ones((3, 2, 8, 8, 4)), jnp.ones((3, 3, 3, 4, 5))

    def forms(platform):
        def convolve(x, w):
            return conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

        with under(Execution(platform=platform)):
            jaxpr = str(jax.make_jaxpr(lambda x, w: jax.vmap(convolve)(x, w))(x, w))
        return "scan" in jaxpr, "feature_group_count=3" in jaxpr

    for _ in range(2):
        assert forms("cpu") == (True, False)
        assert forms("tpu") == forms("gpu") == (False, True)
    assert forms(None) == forms(default_platform())
