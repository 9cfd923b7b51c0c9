"""Embeddings of unequal width against NumPy computations, and what stays as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.core.digests import program_digest
from mhd_jax.exchange import messages
from mhd_jax.training.groups import all_params
from tests.builders import (
    Linear,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    take_steps,
    tiny_batch,
    tiny_clients,
)

K = 4
GRAPH = jnp.array([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 1, 0]], jnp.float32)
WIDTHS = (5, 3, 5, 3)
TWO_WIDTHS = tiny_clients(
    K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))], optimizer=optax.sgd(1.0)
)


def started(batch, **settings):
    """An algorithm, and clients of two widths at its start."""
    algorithm = mhd.algorithms.mhd(**settings)
    init = jax.jit(lambda key: algorithm.init(key, TWO_WIDTHS, batch))
    return algorithm, init(jax.random.key(3))


def unit(e):
    return e / np.sqrt((e**2).sum(-1, keepdims=True) + 1e-6)


def at_unit(e, at):
    """The gradient at e of what has the gradient `at` at unit(e)."""
    norm = np.sqrt((e**2).sum(-1, keepdims=True) + 1e-6)
    return at / norm - e * (e * at).sum(-1, keepdims=True) / norm**3


def reference(state, i, xs, teachers, how, code):
    """The embedding term of client i, and its gradient by the backbone's matrix and the maps."""
    params = [jax.tree.map(np.asarray, of_client(state, j)) for j in range(K)]
    weights = [p["backbone"]["Dense_0"]["kernel"] for p in params]
    own, least = xs @ weights[i], min(WIDTHS)
    value, at_weights, at_maps = 0.0, np.zeros_like(weights[i]), {}
    for j in teachers:
        told = xs @ weights[j]
        if how == "shared_width":
            to = np.eye(WIDTHS[i])[:, :least]
            told = told[:, :least]
        elif WIDTHS[i] == WIDTHS[j]:
            to = np.eye(WIDTHS[i])
        else:
            to = params[i]["projections"][str(WIDTHS[j])]
        gap = unit(own @ to) - unit(code(told))
        value += (gap**2).sum(-1).mean() / len(teachers)
        at = at_unit(own @ to, 2 * gap / len(xs) / len(teachers))
        at_weights += xs.T @ (at @ to.T)
        if how == "linear" and WIDTHS[i] != WIDTHS[j]:
            at_maps[str(WIDTHS[j])] = at_maps.get(str(WIDTHS[j]), 0) + own.T @ at
    return value, at_weights, at_maps


def eight_bits(values):
    step = np.abs(values).max(axis=-1, keepdims=True) / 127
    return np.rint(values / step) * step


@pytest.mark.parametrize(
    ("how", "shared", "compression"),
    [
        ("linear", True, "int8"),
        pytest.param("linear", False, "none", marks=pytest.mark.slow),
        pytest.param("shared_width", True, "int8", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient_equal_the_equations(how, shared, compression, float64):
    batch = tiny_batch(K, dtype=jnp.float64, shared=shared)
    settings = {
        "nu_aux": 0.0,
        "num_targets": "all",
        "compression": compression,
        "public_batch": "shared" if shared else "independent",
    }
    algorithm, state = started(batch, nu_emb=0.4, embedding_projection=how, **settings)
    (_, after), (metrics,) = take_steps(algorithm, None, GRAPH, [batch], state)
    plain, start = started(batch, nu_emb=0.0, **settings)
    (_, without), _ = take_steps(plain, None, GRAPH, [batch], start)
    code = eight_bits if compression == "int8" else lambda values: values
    for i in range(K):
        xs = np.asarray(batch.public_inputs if shared else batch.public_inputs[i])
        value, at_weights, at_maps = reference(state, i, xs, np.flatnonzero(GRAPH[i]), how, code)
        np.testing.assert_allclose(metrics["emb_loss"][i], value, rtol=1e-9)
        before, now, alone = (of_client(each, i) for each in (state, after, without))
        kernel = lambda params: params["backbone"]["Dense_0"]["kernel"]
        np.testing.assert_allclose((kernel(alone) - kernel(now)) / 0.4, at_weights, atol=1e-9)
        assert_trees_close(now["heads"], alone["heads"], atol=1e-12)  # as without embeddings
        maps = before.get("projections", {})
        others = {str(w) for w in WIDTHS if w != WIDTHS[i] and how == "linear"}
        assert maps.keys() == at_maps.keys() == others
        for width, at in at_maps.items():
            moved = (maps[width] - now["projections"][width]) / 0.4
            np.testing.assert_allclose(moved, at, atol=1e-9)
    widths = WIDTHS if how == "linear" else (3,) * K
    each = {3: 7 * 3 * 8, 5: 7 * 5 * 8} if compression == "none" else {3: 7 * 11, 5: 7 * 13}
    senders = {group.members: algorithm.message(state, batch, group) for group in state.groups}
    sent = messages.total(jax.device_get(metrics["messages"]), senders)
    arrivals = np.asarray(GRAPH).sum(axis=0)  # of each sender
    assert sent["by_type"]["embeddings"] == sum(
        each[w] * n for w, n in zip(widths, arrivals, strict=True)
    )


def test_equal_widths_need_no_projection():
    """The step is the very same program."""
    batch, clients = tiny_batch(K), tiny_clients(K)

    def program(how):
        algorithm = mhd.algorithms.mhd(embedding_projection=how)
        state = jax.eval_shape(lambda key: algorithm.init(key, clients, batch), jax.random.key(0))
        return program_digest(algorithm.train_step, state, batch, GRAPH)

    assert program("none") == program("linear") == program("shared_width")


def test_maps_change_no_other_draw():
    _, with_maps = started(tiny_batch(K), embedding_projection="linear")
    _, without = started(tiny_batch(K), nu_emb=0.0)
    for mapped, plain in zip(all_params(with_maps), all_params(without), strict=True):
        (drawn,) = mapped.pop("projections").values()
        assert_trees_equal(mapped, plain)
        assert not np.allclose(drawn[0], drawn[1])  # every client draws its own


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"embedding_projection": "cubic"}, "choose one of none, linear, shared_width"),
        ({"embedding_projection": "linear", "nu_emb": 0.0}, "nu_emb is 0; leave one of them out"),
    ],
)
def test_projections_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.algorithms.mhd(**settings)
