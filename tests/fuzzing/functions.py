"""What users write themselves: graphs as functions of the step, target selections, models, optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax import topology as topologies
from mhd_jax.core.digests import program_digest
from mhd_jax.exchange import contract
from mhd_jax.exchange.selection import TARGET_SELECTIONS, Candidates
from mhd_jax.training.optim import build
from tests.builders import tiny_dataset
from tests.fuzzing.kinds import attempt, kind, one_in

SOUND = "sound"

# What a graph function returns of a step, and whether that is a graph of 4 clients at the first 50.
GRAPHS = {
    SOUND: lambda step: 1 - jnp.eye(4),
    "changes": lambda step: (1 - jnp.eye(4)) * (step % 3),
    "integers": lambda step: (1 - jnp.eye(4, dtype=jnp.int32)) * (step < 7),
    "truths": lambda step: ~jnp.eye(4, dtype=bool),
    "of NumPy": lambda step: np.eye(4)[[1, 2, 3, 0]],
    "a list": lambda step: [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2.5], [0, 0, step, 0]],
    "drawn by its step": lambda step: (
        jax.random.uniform(jax.random.fold_in(jax.random.key(1), step), (4, 4)) * (1 - jnp.eye(4))
    ),
    "beyond the end": lambda step: (1 - jnp.eye(4)) * jnp.where(step < 50, 1, -1),
}
NO_GRAPHS = {
    "drawn with NumPy": lambda step: np.triu(np.random.default_rng().random((4, 4)), 1),
    "self-loops": lambda step: jnp.ones((4, 4)),
    "a late self-loop": lambda step: jnp.eye(4) * (step == 49),
    "negative": lambda step: -(1 - jnp.eye(4)),
    "late and negative": lambda step: (1 - jnp.eye(4)) * jnp.where(step == 31, -1, 1),
    "no number": lambda step: (1 - jnp.eye(4)) * jnp.log(step - 20.0),
    "infinite": lambda step: (1 - jnp.eye(4)) / (step - 3.0),
    "another shape": lambda step: jnp.zeros((4, 3)),
    "another number of clients": lambda step: jnp.zeros((5, 5)),
    "complex": lambda step: 1j * (1 - jnp.eye(4)),
    "branches": lambda step: jnp.zeros((4, 4)) if step > 3 else jnp.ones((4, 4)),
    "fails": lambda step: {}["graph"],
    "nothing": lambda step: None,
    "text": lambda step: "ring",
    "two arguments": lambda step, other: jnp.zeros((4, 4)),
}
WRAPS = {
    "as it is": lambda f: f,
    "compiled": jax.jit,
    "in a branch": lambda f: lambda step: jax.lax.cond(step >= 0, f, f, step),
}


@kind(st.tuples(st.sampled_from([*GRAPHS, *NO_GRAPHS]), st.sampled_from([*WRAPS])), examples=20)
def graph_functions(case):
    name, wrap = case
    if wrap == "in a branch" and name not in GRAPHS:
        wrap = "as it is"  # JAX has words of its own for branches that differ
    function = WRAPS[wrap]((GRAPHS | NO_GRAPHS)[name])
    if wrap == "in a branch" and name == "a list":
        function = GRAPHS[name]

    def sound():
        topology = topologies.as_topology(function, 4)
        topologies.require_sound(topology, 50)
        return topology

    topology, why = attempt(sound)
    assert (why is None) == (name in GRAPHS), (case, why)
    if why is None:
        expected = np.asarray(GRAPHS[name](jnp.int32(11)), np.float32)
        np.testing.assert_allclose(topology.at(11), expected, rtol=1e-6)
    return why is None


@st.composite
def rules(draw):
    """A target selection, sizes of what it chooses from, and whether it makes distributions."""
    base = draw(st.sampled_from([*TARGET_SELECTIONS]))
    sizes = draw(st.sampled_from([(1, 1, 1, 2), (2, 4, 3, 5)]))  # new shapes compile for long
    edits = {
        SOUND: lambda targets, c: targets,
        "mixed": lambda targets, c: 0.5 * targets + 0.5 / targets.shape[-1],
        "sharper": lambda targets, c: jax.nn.softmax(5 * targets),
        "scaled": lambda targets, c: 3 * targets,
        "shifted": lambda targets, c: targets - jnp.arange(targets.shape[-1]),
        "with the candidates": lambda targets, c: targets + c.probabilities,
        "of one head": lambda targets, c: targets[:, :1, :, None],
        "integers": lambda targets, c: (targets > 0).astype(jnp.int32),
        "logarithms": lambda targets, c: jnp.log(targets),
        "drawn": lambda targets, c: jax.nn.softmax(targets * np.random.default_rng().random()),
        "fails": lambda targets, c: targets.nothing,
        "no array": lambda targets, c: {"targets": targets},
    }
    return base, sizes, draw(st.sampled_from([*edits])), edits


@kind(rules(), examples=10)
def target_rules(case):
    base, shape, edit, edits = case
    change = edits[edit]

    def rule(key, candidates):
        return change(TARGET_SELECTIONS[base](key, candidates), candidates)

    key = jax.random.key(0)
    logits = jax.random.normal(key, shape)
    density, counts = logits[..., 0], jnp.ones((shape[0], shape[2]))
    valid = jnp.ones(shape[0], bool)
    candidates = Candidates(logits, jax.nn.softmax(logits), None, valid, density, counts)
    targets, why = attempt(lambda: jax.jit(contract.checked(rule))(key, candidates))
    taken = edit in (SOUND, "mixed", "sharper")
    assert (why is None) == taken, (base, shape, edit, why)
    if why is None:
        np.testing.assert_allclose(targets.sum(axis=-1), 1, atol=1e-3)
    return why is None


class Own(nn.Module):
    """A model with one habit, good or bad."""

    habit: str

    @nn.compact
    def __call__(self, x, train: bool = False):
        h = nn.Dense(6)(x)
        if self.habit in ("keeps a mean", "keeps it when trained", "grows", "turns to integers"):
            if self.habit != "keeps it when trained" or train:
                kept = self.variable("own", "mean", lambda: jnp.zeros(6))
                if train and self.habit == "grows":
                    kept.value = jnp.concatenate([kept.value, kept.value])
                elif train and self.habit == "turns to integers":
                    kept.value = jnp.ones(6, jnp.int32)
                elif train:
                    kept.value = 0.9 * kept.value + 0.1 * h.mean(axis=0)
                else:
                    h = h - kept.value
        elif self.habit == "counts":
            count = self.variable("own", "count", lambda: jnp.zeros((), jnp.int32))
            if train:
                count.value += 1
        elif self.habit == "sows":
            self.sow("losses", "size", jnp.square(h).sum())
        elif self.habit == "has frozen weights":
            h = h @ self.variable("frozen", "w", lambda: jnp.ones((6, 6))).value
        elif self.habit == "keeps a key":
            self.variable("own", "key", lambda: jax.random.key(0))
        elif self.habit == "draws with NumPy":
            h = h + np.random.default_rng().random()
        elif self.habit == "drops out":
            h = nn.Dropout(0.5, deterministic=not train)(h)
        elif self.habit == "always drops out":
            h = nn.Dropout(0.5, deterministic=False)(h)
        elif self.habit == "classifies":
            return nn.Dense(3)(h)
        elif self.habit == "returns a pair":
            return h, h
        return nn.relu(h)


GOOD = ("none", "keeps a mean", "counts", "sows", "has frozen weights", "drops out")
BAD = ("keeps it when trained", "grows", "turns to integers", "keeps a key", "draws with NumPy")
BAD += ("always drops out", "classifies", "returns a pair")
DATA = tiny_dataset(60)


@kind(st.sampled_from([*GOOD, *BAD]), examples=14)
def own_models(habit):
    clients, why = attempt(
        lambda: mhd.make_clients(DATA, 2, Own(habit), partition="iid", public_fraction=0.2)
    )
    assert (why is None) == (habit in GOOD), (habit, why)
    if why is None:
        model = clients.groups[0].client_model(2, 3)
        key, samples = jax.random.key(0), DATA.inputs[:4]
        params, stats = model.init(key, samples)
        _, after = model.apply(params, stats, samples, key)
        assert jax.tree.structure(after) == jax.tree.structure(stats)
        changes = habit in ("keeps a mean", "counts")
        differ = jax.tree.leaves(jax.tree.map(jnp.not_equal, after, stats))
        assert any(map(np.any, differ)) == changes
    return why is None


@st.composite
def optimizers(draw):
    """An optax transformation, and whether it fits parameters {backbone: {w}, heads: {w, b}}."""
    params = {"backbone": {"w": jnp.ones(2)}, "heads": {"w": jnp.ones(3), "b": jnp.ones(1)}}
    body, w, b = (draw(st.booleans()) for _ in range(3))
    whole = {"backbone": {"w": body}, "heads": {"w": w, "b": b}}
    prefix = {"backbone": body, "heads": w}
    foreign = {"backbone": True, "head": False}
    shape = draw(st.sampled_from(["whole", "prefix", "function", "foreign"]))
    mask = {"whole": whole, "prefix": prefix, "foreign": foreign}.get(shape, lambda params: whole)
    inner = draw(st.sampled_from([optax.sgd(0.1), optax.adam(0.1), optax.sgd(0.1, momentum=0.9)]))
    how = draw(st.sampled_from(["masked", "partition", "plateau"] + ["plain"] * draw(one_in(3))))
    if how == "masked":
        return params, optax.masked(inner, mask), shape != "foreign"
    if how == "partition":
        labels = lambda tree: jax.tree.map(lambda on: "on" if on else "off", tree)
        named = (lambda params: labels(whole)) if callable(mask) else labels(mask)
        both = {"on": inner, "off": optax.set_to_zero()}
        return params, optax.multi_transform(both, named), shape != "foreign"
    if how == "plateau":
        return params, optax.chain(inner, optax.contrib.reduce_on_plateau()), False
    return params, inner, True


@kind(optimizers(), examples=15)
def own_optimizers(case):
    params, optimizer, fits = case
    guarded = build(optimizer, 10)

    def step(gradients, params):
        return guarded.update(gradients, guarded.init(params), params)[0]

    digest, why = attempt(lambda: program_digest(step, params, params))
    assert (why is None) == fits, why
    if why is None:
        expected = optimizer.update(params, optimizer.init(params), params)[0]
        jax.tree.map(np.testing.assert_array_equal, step(params, params), expected)
        assert digest == program_digest(step, params, params)
    return why is None
