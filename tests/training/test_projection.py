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
    tiny_batch,
    tiny_clients,
)

K = 4
GRAPH = jnp.array([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 1, 0]], jnp.float32)
MEMBERS = ((0, 2), (1, 3))
WIDTHS = (5, 3, 5, 3)


def two_widths(optimizer=None):
    return tiny_clients(
        K, groups=list(zip((Linear(5), Linear(3)), MEMBERS, strict=True)), optimizer=optimizer
    )


def of_client(groups, i):
    group = next(g for g, members in enumerate(MEMBERS) if i in members)
    row = MEMBERS[group].index(i)
    return jax.tree.map(lambda a: np.asarray(a[row]), groups[group])


def one_step(batch, clients=None, graph=GRAPH, seed=3, **settings):
    algorithm = mhd.algorithms.mhd(**settings)
    clients = clients or two_widths(optax.sgd(1.0))
    state = jax.jit(lambda key: algorithm.init(key, clients, batch))(jax.random.key(seed))
    after, metrics = jax.jit(algorithm.train_step)(state, batch, graph)
    return state, after, metrics


def unit(e):
    return e / np.sqrt((e**2).sum(-1, keepdims=True) + 1e-6)


def at_unit(e, at):
    """The gradient at e of what has the gradient `at` at unit(e)."""
    norm = np.sqrt((e**2).sum(-1, keepdims=True) + 1e-6)
    return at / norm - e * (e * at).sum(-1, keepdims=True) / norm**3


def reference(state, i, xs, teachers, how, code):
    """The embedding term of client i, and its gradient by the backbone's matrix and the maps."""
    params = [of_client(all_params(state), j) for j in range(K)]
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
    [("linear", True, "int8"), ("linear", False, "none"), ("shared_width", True, "int8")],
)
def test_loss_and_gradient_equal_the_equations(how, shared, compression, float64):
    batch = tiny_batch(K, dtype=jnp.float64, shared=shared)
    settings = {
        "nu_aux": 0.0,
        "num_targets": "all",
        "compression": compression,
        "public_batch": "shared" if shared else "independent",
    }
    state, after, metrics = one_step(batch, nu_emb=0.4, embedding_projection=how, **settings)
    _, without, _ = one_step(batch, nu_emb=0.0, **settings)
    code = eight_bits if compression == "int8" else lambda values: values
    for i in range(K):
        xs = np.asarray(batch.public_inputs if shared else batch.public_inputs[i])
        value, at_weights, at_maps = reference(state, i, xs, np.flatnonzero(GRAPH[i]), how, code)
        np.testing.assert_allclose(metrics["emb_loss"][i], value, rtol=1e-9)
        before, now = (of_client(all_params(s), i) for s in (state, after))
        alone = of_client(all_params(without), i)
        moved = (
            alone["backbone"]["Dense_0"]["kernel"] - now["backbone"]["Dense_0"]["kernel"]
        ) / 0.4
        np.testing.assert_allclose(moved, at_weights, atol=1e-9)
        assert_trees_close(now["heads"], alone["heads"], atol=1e-12)  # as without embeddings
        maps = before.get("projections", {})
        assert (
            maps.keys()
            == at_maps.keys()
            == ({str(w) for w in WIDTHS if w != WIDTHS[i]} if how == "linear" else set())
        )
        for width, at in at_maps.items():
            moved = (maps[width] - now["projections"][width]) / 0.4
            np.testing.assert_allclose(moved, at, atol=1e-9)
    widths = WIDTHS if how == "linear" else (3,) * K
    each = {3: 7 * 3 * 8, 5: 7 * 5 * 8} if compression == "none" else {3: 7 * 11, 5: 7 * 13}
    algorithm = mhd.algorithms.mhd(nu_emb=0.4, embedding_projection=how, **settings)
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
    def params(**settings):
        algorithm = mhd.algorithms.mhd(**settings)
        init = jax.jit(lambda key: algorithm.init(key, two_widths(), tiny_batch(K)))
        return all_params(init(jax.random.key(3)))

    for mapped, plain in zip(
        params(embedding_projection="linear"), params(nu_emb=0.0), strict=True
    ):
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
