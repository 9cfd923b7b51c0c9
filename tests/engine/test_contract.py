"""Users' algorithms, target selections, models and optimizers: what breaks its contract is told at once."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.algorithms.base import factory
from mhd_jax.engine.prepare import prepare
from mhd_jax.exchange.selection import TARGET_SELECTIONS
from tests.builders import (
    NUM_CLASSES,
    Linear,
    assert_trees_equal,
    interrupt,
    thinned,
    tiny_clients,
    tiny_dataset,
)

SETTINGS = {"steps": 4, "eval_every": 2, "batch_size": 6, "public_batch_size": 6}


def clients(model=None, **kwargs):
    kwargs = {"partition": "iid", "public_fraction": 0.3, **kwargs}
    return mhd.make_clients(tiny_dataset(100), 4, model or Linear(), **kwargs)


def prepared(algorithm="isolated", who=None, **settings):
    return prepare("ring", who or clients(), algorithm, **SETTINGS | settings)


ALONE = mhd.algorithms.isolated()


def edited(**functions):
    return dataclasses.replace(ALONE, name="mine", factory=None, **functions)


def stepping(change):
    def train_step(state, batch, graph):
        return change(*ALONE.train_step(state, batch, graph))

    return edited(train_step=train_step)


def in_half(state):
    (group,) = state.groups
    params = jax.tree.map(lambda a: a.astype(jnp.float16), group.params)
    return dataclasses.replace(state, groups=(dataclasses.replace(group, params=params),))


def noisy(state, metrics):
    return state, {**metrics, "loss": metrics["loss"] + np.random.default_rng().random()}


@pytest.mark.parametrize(
    ("algorithm", "sentence"),
    [
        (edited(init=lambda *_: {}), "init of mine must return a mhd_jax State, not of type dict"),
        (stepping(lambda state, metrics: state), "must return a state and a dictionary of metrics"),
        (
            stepping(lambda state, metrics: (in_half(state), metrics)),
            r"keep the shape and type of state\.groups\[0\]\.params.* float32 .* float16",
        ),
        (
            stepping(lambda state, metrics: (dataclasses.replace(state, extra={"a": 1}), metrics)),
            "a state of the same structure as it takes",
        ),
        (
            stepping(lambda state, metrics: (state, {**metrics, "loss": metrics["loss"][:, None]})),
            r"the metric loss of mine must be one number, or one for each of the 4 .*\[4, 1\]",
        ),
        (
            dataclasses.replace(
                stepping(lambda s, m: (s, {**m, "messages": {"a": jnp.ones((4, 4))}})),
                message=lambda *_: {"a": {}},
            ),
            r"count messages of a in integers \[K, K\].* not float32 \[4, 4\]",
        ),
        (
            dataclasses.replace(
                stepping(lambda s, m: (s, {**m, "messages": jnp.zeros((4, 4), jnp.int32)})),
                message=lambda *_: {"predictions": {}},
            ),
            r"count messages by kind, .* \(predictions\)",
        ),
        (
            stepping(lambda s, m: (s, {"messages": m["messages"]})),
            "must hold 'loss' and 'messages', but are messages",
        ),
        (
            edited(predict=lambda state, x: ALONE.predict(state, x)[:, :, 0]),
            r"logits \[K, N, H, C\], here \[4, 2, 1, 3\], not float32 \[4, 2, 3\]",
        ),
        (
            stepping(lambda s, m: (s, m) if m["loss"].sum() > 0 else (s, {})),
            r"train_step of mine asks for the value .* \(test_contract\.py, line \d+\); choose by jnp",
        ),
        (stepping(noisy), r"train_step of mine is another one .* draw with jax\.random"),
    ],
)
def test_algorithms_are_told_what_they_break(algorithm, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        prepared(algorithm)


@factory
def weighted(weight: float = 1.0, count: int | None = None):
    return ALONE


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: edited(public_batch="each"),
            "of mine must be 'shared', 'independent' or None, no",
        ),
        (lambda: weighted(weight="abc"), "weight must be a finite number, not 'abc'"),
        (lambda: weighted(count=0.5), "count must be an integer"),
    ],
)
def test_declarations_and_hyperparameters_of_other_kinds_are_refused(make, sentence):
    weighted(2, count=None)
    with pytest.raises(mhd.ConfigError, match=sentence):
        make()


RULES = {
    "must return probabilities .* returns shape": lambda key, c: c.probabilities,
    "sums span": lambda key, c: jax.nn.relu(c.logits.sum(axis=0)),
    "its least number is -": lambda key, c: c.probabilities[0] - jnp.array([1.0, -1.0, 0.0]),
    "where only 0 of": lambda key, c: jnp.einsum(
        "n,nprc->prc", c.valid.astype(float) / c.valid.sum(), c.probabilities
    ),
    "must return finite floating-point": lambda key, c: (
        c.probabilities[0].argmax(-1)[..., None] + jnp.zeros(NUM_CLASSES, int)
    ),
    "draw with jax.random": lambda key, c: jax.nn.softmax(
        c.logits.sum(axis=0) * np.random.default_rng().random()
    ),
    r"fails for candidates .* \(ZeroDivisionError": lambda key, c: 1 / 0,
}


@pytest.mark.parametrize("sentence", thinned(RULES, 3))
@pytest.mark.parametrize(
    "how",
    [{}, {"num_targets": "all", "public_batch": "independent"}, {"pool_size": 2, "nu_emb": 0}],
)
def test_target_selections_are_told_what_they_break(sentence, how):
    algorithm = mhd.algorithms.mhd(target_selection=RULES[sentence], **how)
    with pytest.raises(mhd.ConfigError, match=sentence) as raised:
        prepared(algorithm)
    assert not getattr(raised.value, "__notes__", [])  # such as JAX's on frames that it leaves out


@dataclasses.dataclass
class Scaled:
    """Cannot be hashed, as it is not frozen."""

    scale: float = 1.0

    def __call__(self, *_):
        return self.scale * (jnp.ones((4, 4)) - jnp.eye(4))


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("target selection", lambda: mhd.algorithms.mhd(target_selection=Scaled())),
        ("topology function", lambda: prepare(Scaled(), clients(), "isolated", **SETTINGS)),
    ],
)
def test_what_programs_are_shared_by_can_be_hashed(what, make):
    with pytest.raises(mhd.ConfigError, match=f"the {what} Scaled cannot be hashed .* frozen"):
        make()


def test_a_target_selection_that_counts_who_is_not_valid_is_told():
    def alike(key, candidates):
        return candidates.probabilities.mean(axis=0)

    def of_the_valid(key, candidates):
        shares = candidates.valid / jnp.maximum(candidates.valid.sum(), 1)
        return jnp.einsum("n,nprc->prc", shares, candidates.probabilities)

    for rule, count in ((alike, 1), (of_the_valid, 0)):
        with warnings.catch_warnings(record=True) as told:
            prepared(mhd.algorithms.mhd(target_selection=rule, nu_emb=0))
        assert sum("alike counts what candidates say" in str(w.message) for w in told) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGET_SELECTIONS)
def test_the_librarys_own_selections_pass_as_users(name):
    """And are the same program under either name."""
    who = clients(objectives={0: "unlabelled"})
    runs = [
        prepared(mhd.algorithms.mhd(target_selection=rule, num_targets="all", nu_emb=0), who)
        for rule in (name, TARGET_SELECTIONS[name])
    ]
    one, other = (run.lower(run.carry).as_text() for run in runs)
    assert one == other


class Counting(nn.Module):
    """Keeps a running mean and a count, and sows its activations."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        h = nn.Dense(5)(x)
        mean = self.variable("running", "mean", lambda: jnp.zeros(5))
        count = self.variable("counts", "passes", lambda: jnp.zeros((), jnp.int32))
        self.sow("losses", "size", jnp.abs(h).sum())
        self.sow("intermediates", "h", h)
        if train:
            mean.value = 0.5 * mean.value + 0.5 * h.mean(axis=0)
            count.value = count.value + 1
        return nn.relu(h - mean.value)


def test_a_models_own_variables_are_its_clients_state():
    """The mean of each client's own private batches, computed again by hand; saved and resumed."""
    run = prepared("isolated", clients(Counting()), optimizer=optax.sgd(0.0))
    carry = run.start()
    (group,) = carry.state.groups
    assert set(group.stats) == {"running", "counts"}
    dense = jax.tree.map(np.asarray, group.params["backbone"]["Dense_0"])
    mean = np.zeros((4, 5))
    for step in range(3):
        batch = run.data.stored(carry.state.key, carry.state.client_ids, jnp.int32(step), run.spec)
        h = np.einsum("kbi,kij->kbj", batch.inputs, dense["kernel"]) + dense["bias"][:, None]
        mean = 0.5 * mean + 0.5 * h.mean(axis=1)
    (group,) = run.advance(carry, 3).state.groups
    np.testing.assert_allclose(group.stats["running"]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(group.stats["counts"]["passes"], [3, 3, 3, 3])


@pytest.mark.slow
def test_own_variables_are_resumed_and_averaged(tmp_path):
    fedavg = mhd.algorithms.fedavg(local_steps=2)
    given = {"topology": "ring", "clients": clients(Counting()), "algorithm": fedavg, **SETTINGS}
    with pytest.raises(KeyboardInterrupt):
        mhd.simulate(**given, workdir=tmp_path, callbacks=interrupt)
    resumed, whole = mhd.simulate(**given, workdir=tmp_path), mhd.simulate(**given)
    assert resumed.started_at == 2
    assert_trees_equal(resumed.state.groups[0].stats, whole.state.groups[0].stats)
    mean = np.asarray(whole.state.groups[0].stats["running"]["mean"])
    np.testing.assert_allclose(mean, np.broadcast_to(mean[:1], mean.shape), rtol=1e-6)


class Late(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        if train:
            self.variable("running", "mean", lambda: jnp.zeros(5))
        return nn.Dense(5)(x)


class Growing(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        seen = self.variable("memory", "seen", lambda: x[:1])
        if train:
            seen.value = jnp.concatenate([seen.value, x[:1]])
        return nn.Dense(5)(x)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(5)(x) + (np.random.default_rng().random() if train else 0)


class DrawnByNumPy(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return x @ self.param("w", lambda key: jnp.asarray(np.random.default_rng().random((4, 5))))


class Holding(nn.Module):
    weights: object

    @nn.compact
    def __call__(self, x, train: bool = False):
        return x @ self.weights


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Late(), "Late has variables with train=True that it has not"),
        (Growing(), r"\['memory'\]\['seen'\] changes in a pass with train=True"),
        (Noisy(), "Noisy has other outputs each time .* self.make_rng"),
        (DrawnByNumPy(), "DrawnByNumPy has other parameters each time"),
        (Holding(np.zeros((400, 500))), "Holding cannot be hashed"),
    ],
)
def test_models_are_told_what_they_break(model, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence) as refusal:
        clients(model)
    assert len(str(refusal.value)) < 400


LABELS = {"backbone": "no", "heads": "yes"}


@pytest.mark.slow
def test_masks_and_labels_may_be_trees():
    parts = {"yes": optax.sgd(0.1), "no": optax.set_to_zero()}
    run = prepared("mhd", optimizer=optax.multi_transform(parts, LABELS))
    before = jax.tree.map(np.asarray, run.start().state.groups[0].params)
    after = run.advance(run.start(), 2).state.groups[0].params
    assert_trees_equal(after["backbone"], before["backbone"])
    assert (np.asarray(after["heads"]["kernel"]) != before["heads"]["kernel"]).any()
    prepared("mhd", optimizer=optax.adamw(1e-3, mask={"backbone": True, "heads": False}))


def test_masks_see_what_an_algorithm_adds():
    """Projections are parameters too."""
    who = clients([Linear(), Linear(), Linear(7), Linear(7)])
    mask = optax.masked(optax.sgd(0.1), {"backbone": True, "heads": False, "projections": True})
    prepared(mhd.algorithms.mhd(embedding_projection="linear"), who, optimizer=mask)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.multi_transform({"yes": optax.sgd(0.1)}, {"body": "yes", "heads": "yes"}),
        optax.multi_transform({"yes": optax.sgd(0.1)}, LABELS),
        optax.contrib.reduce_on_plateau(),
        optax.GradientTransformation(lambda params: 1 / 0, lambda *_: None),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(optimizer):
    with pytest.raises(mhd.ConfigError, match=r"optimizer cannot be applied .* backbone, heads"):
        prepared("mhd", optimizer=optimizer)


def test_optimizers_are_optimizers():
    with pytest.raises(mhd.ConfigError, match=r"an optimizer is mhd_jax\.optim\.SGD"):
        tiny_clients(optimizer=print)


def test_a_start_traces_the_step_once_for_contract_and_digest(tmp_path):
    traced = []

    def look(state, metrics):
        traced.append(state)
        return state, metrics

    mhd.simulate("ring", clients(), stepping(look), workdir=tmp_path, **SETTINGS)
    assert len(traced) == 4  # once for both, twice to see that it is pure, once for the program


def test_a_start_is_traced_once_for_its_check_and_its_program():
    traced, plain = [], mhd.algorithms.isolated()

    def init(key, who, sample_batch):
        traced.append(who)
        return plain.init(key, who, sample_batch)

    own = dataclasses.replace(plain, init=init)
    mhd.prepare("ring", clients(), own, **SETTINGS).init()
    assert len(traced) == 1
