"""Several runs in one program are what each of them is by itself."""

import dataclasses
import gc
import shutil

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.algorithms.base import factory
from mhd_jax.engine import joint_runs as joining
from mhd_jax.engine.prepare import prepare
from mhd_jax.runs.finished import has_report
from tests.builders import (
    Linear,
    assert_trees_close,
    assert_trees_equal,
    interrupt,
    short,
    tiny_dataset,
)

SEEDS = (3, 0, 5)
SETTINGS = {"batch_size": 4, "public_batch_size": 8, "steps": 12}
WIDTH = 41  # of samples that no other array is as wide as
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def clients(seed):
    partition = mhd.partition.primary_labels(1, 3.0)  # unequal sizes
    return mhd.make_clients(
        tiny_dataset(), 4, Linear(), partition=partition, public_fraction=0.3, seed=seed
    )


def graph(seed):
    return mhd.topology.named("erdos_renyi", 4, edge_probability=0.6, seed=seed)


def algorithm(name, **numbers):
    """Of few heads, which take less long to compile."""
    fewest = {"num_aux_heads": 1} if name == "mhd" else {}
    return ALGORITHMS[name](**fewest | numbers)


def arguments(
    name, seed=0, graph_of=None, learning_rate=None, weight_decay=1e-3, optimizer=None, **numbers
):
    """Those of one run; a setting of the engine's is among the numbers."""
    how = {key: numbers.pop(key) for key in [*SETTINGS, "client_chunk"] if key in numbers}
    if optimizer is not None:
        how["optimizer"] = optimizer
    elif learning_rate is not None:
        how["optimizer"] = mhd.optim.SGD(learning_rate, weight_decay=weight_decay)
    return {
        "topology": graph(seed if graph_of is None else graph_of),
        "clients": clients(seed),
        "algorithm": algorithm(name, **numbers),
        "seed": seed,
        **SETTINGS,
        **how,
    }


def many(name, **kwargs):
    several = [arguments(name, seed) for seed in SEEDS]
    return mhd.simulate_many(several, eval_every=6, write_reports=False, **kwargs)


def prepared(name, **kwargs):
    return [prepare(**arguments(name, seed, **kwargs)) for seed in SEEDS]


def params(result):
    return result.state.groups[0].params


@pytest.fixture
def programs(monkeypatch):
    """How many runs each program of this test advanced."""
    found = []
    advance = joining.Together.advance

    def counted(self, carry, num_steps):
        found.append(len(self.runs))
        return advance(self, carry, num_steps)

    monkeypatch.setattr(joining.Together, "advance", counted)
    return found


@pytest.mark.parametrize("name", short(["mhd", "fedmd"], "mhd"))
def test_together_equals_apart(name, programs):
    seen = []
    results = many(name, callbacks=seen.append)
    assert set(programs) == {3}
    assert [(record["seed"], record["step"]) for record in seen] == [
        (seed, step) for step in (6, 12) for seed in SEEDS
    ]
    for seed, result in zip(SEEDS, results, strict=True):
        alone = mhd.simulate(**arguments(name, seed), eval_every=6)
        assert result.summary["seed"] == seed
        assert_trees_close(params(result), params(alone), **CLOSE)
        for one, other in zip(result.history, alone.history, strict=True):
            assert (one["step"], one["messages"]) == (other["step"], other["messages"])
            assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
            assert one["beta_sh"] == pytest.approx(other["beta_sh"], abs=0.1)


@pytest.mark.slow
def test_a_stop_and_a_seed_that_is_ahead(tmp_path, programs):
    """Resumed bit for bit; a run that has finished is read, and one at another step goes alone."""
    folders = [tmp_path / str(seed) for seed in SEEDS]
    whole = many("isolated")

    def stop(record):
        if record["seed"] == SEEDS[-1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        many("isolated", workdirs=folders, callbacks=stop)
    programs.clear()
    resumed = many("isolated", workdirs=folders)
    assert programs and set(programs) == {3}
    for one, other in zip(resumed, whole, strict=True):
        assert one.started_at == 6 and len(one.history) == 2
        assert_trees_equal(one.state, other.state)

    for folder in folders:  # as if killed between two saves
        (folder / "summary.json").unlink()
    shutil.rmtree(folders[2] / "checkpoints" / "12")
    programs.clear()
    repeated = many("isolated", workdirs=folders)
    assert set(programs) == {3} and [result.started_at for result in repeated] == [6, 6, 6]
    for one, other in zip(repeated, whole, strict=True):
        assert_trees_equal(one.state, other.state)
        assert [record["step"] for record in one.history] == [6, 12]

    again = many("isolated", workdirs=folders)
    assert [result.started_at for result in again] == [12, 12, 12]

    folders = [tmp_path / f"second {seed}" for seed in SEEDS]
    with pytest.raises(KeyboardInterrupt):
        one = arguments("isolated", SEEDS[1])
        mhd.simulate(**one, eval_every=6, workdir=folders[1], callbacks=interrupt)
    programs.clear()
    mixed = many("isolated", workdirs=folders)
    assert [result.started_at for result in mixed] == [0, 6, 0] and set(programs) == {2}
    for one, other in zip(mixed, whole, strict=True):
        assert_trees_close(params(one), params(other), rtol=1e-4)


@pytest.mark.slow
def test_no_run_is_thrown_back_to_where_another_is(tmp_path, programs):
    """Neither one of another shape, nor one that is more than a checkpoint ahead."""

    def cut_at(step):
        def cut(record):
            if record["step"] == step:
                raise KeyboardInterrupt

        return cut

    apart = [("isolated", 0, 3), ("supervised", 0, 9), ("isolated", 3, 9)]
    how = {"eval_every": 3, "keep_checkpoints": 3}
    for name, seed, step in apart:
        folder = tmp_path / f"{name} {seed}"
        with pytest.raises(KeyboardInterrupt):
            given = arguments(name, seed)
            mhd.simulate(**given, **how, workdir=folder, callbacks=cut_at(step))
    programs.clear()
    resumed = mhd.simulate_many(
        [arguments(name, seed) for name, seed, _ in apart],
        workdirs=[tmp_path / f"{name} {seed}" for name, seed, _ in apart],
        write_reports=False,
        **how,
    )
    assert [result.started_at for result in resumed] == [3, 9, 9] and not programs


@pytest.mark.slow
def test_only_the_data_of_runs_that_go_on_are_on_the_device(monkeypatch):
    """One part's own, and stacked, however many parts there are."""
    kept = []

    class Watch(mhd.Callback):
        def on_compiled(self, seconds):
            gc.collect()
            wide = [a for a in jax.live_arrays() if a.shape[-1:] == (WIDTH,)]
            kept.append(sum(a.nbytes for a in wide))

    inputs = np.random.default_rng(0).normal(size=(60, WIDTH)).astype(np.float32)
    data = mhd.data.arrays(inputs, np.arange(60) % 3)
    who = mhd.make_clients(data, 2, Linear(), partition="iid", public_fraction=0)
    monkeypatch.setattr(joining, "_most_at_once", lambda run: 2)
    runs = [
        {"topology": "complete", "clients": who, "algorithm": name, "seed": seed}
        for name in ("isolated", "fedavg")
        for seed in range(4)
    ]
    mhd.simulate_many([{**run, "steps": 1, "batch_size": 4} for run in runs], callbacks=Watch())
    assert len(kept) == 4 and len(set(kept)) == 1 and kept[0] > 0


def test_branches_stay_branches():
    """A joined step count keeps `cond` from computing both sides of every run."""
    runs = prepared("fedavg")
    joined = together(runs)
    carry = joined.join([run.start() for run in runs])
    assert carry.state.step.shape == () and carry.state.key.shape == (3,)
    assert "stablehlo.case" in joined.lower(carry).as_text()


def together(runs):
    """The runs as one, where all of them are."""
    indices, joined = next(joining.partition(runs))
    return joined if len(indices) == len(runs) else None


def test_what_cannot_or_should_not_go_together(monkeypatch):
    runs = prepared("mhd")
    assert together(runs) is not None
    assert list(joining.partition(runs[:1])) == [([0], None)]
    other = prepare(**arguments("mhd", batch_size=5))
    parts = joining.partition([runs[0], other, *prepared("naive"), runs[1]])
    assert [part for part, _ in parts] == [[0, 5], [1], [2, 3, 4]]
    assert together(prepared("mhd", client_chunk=1)) is None
    longer = prepare(**arguments("mhd", steps=13))  # another schedule
    assert together([runs[0], longer]) is None
    one = joining._most_at_once(runs[0])
    monkeypatch.setattr(joining, "_most_at_once", lambda run: 2)
    assert one > 2 and [part for part, _ in joining.partition(runs)] == [[0, 1], [2]]
    monkeypatch.undo()
    monkeypatch.setattr(joining.memory, "capacity_bytes", lambda: 1)
    assert together(runs) is None
    with pytest.raises(mhd.ConfigError, match="must be one for each seed"):
        mhd.simulate_seeds(iter([graph(0)]), iter([clients(0)]), seeds=[0, 1])
    with pytest.raises(mhd.ConfigError, match="one for each run, not of type Clients"):
        mhd.simulate_seeds([graph(0)], clients(0), seeds=[0])
    with pytest.raises(mhd.ConfigError, match="runs must be some"):
        mhd.simulate_many([])


def settings(name="mhd", learning_rate=0.1, **how):
    """A run on one graph, unless told, and with an optimizer of its own."""
    return arguments(name, learning_rate=learning_rate, **{"graph_of": 0} | how)


@pytest.mark.slow
@pytest.mark.parametrize(
    "several",
    [
        [
            {"nu_aux": 0.7, "label_smoothing": 0.3, "graph_of": 1},
            {"temperature": 3.0, "learning_rate": 0.01, "nu_emb": 2.0},
            {"weight_decay": 0.3, "seed": 2},
        ],
        [
            {"name": "ccl", "lambda_m": 0.4},
            {"name": "ccl", "lambda_d": 2.0, "averaging_rate": 0.5},
            {"name": "ccl", "learning_rate": 0.3},
        ],
        [
            {"name": "dsgd", "optimizer": mhd.optim.AdamW(rate, beta1, beta2, clip_norm=norm)}
            for rate, beta1, beta2, norm in (
                (0.05, 0.9, 0.9, 0.1),
                (0.1, 0.9, 0.99, 0.1),
                (0.05, 0.2, 0.9, 1.0),
            )
        ],
    ],
)
def test_numbers_that_differ(several, programs):
    """Hyperparameters, data and graphs of their own, in one program."""
    several = [settings(**each) for each in several]
    results = mhd.simulate_many(several, eval_every=6)
    assert set(programs) == {3}
    for given, result in zip(several, results, strict=True):
        alone = mhd.simulate(**given, eval_every=6)
        assert result.summary["settings"] == alone.summary["settings"]
        ours, theirs = result.state.groups[0], alone.state.groups[0]
        assert_trees_close(ours.params, theirs.params, **CLOSE)
        assert_trees_close(ours.opt_state, theirs.opt_state, rtol=1e-3, atol=1e-5)
        assert ours.optimizer is theirs.optimizer
    first, *others = (jax.tree.leaves(params(result))[0] for result in results)
    assert all(np.abs(first - other).max() > 1e-3 for other in others)


@pytest.mark.slow
def test_a_number_that_decides_makes_another_program(programs):
    """0 is without; and what an algorithm asks about a number must have one answer."""
    runs = [settings(nu_emb=0.0), settings(nu_emb=0.1), settings(nu_emb=0.2)]
    mhd.simulate_many(runs, eval_every=12)
    assert set(programs) == {2}

    @factory
    def decided(strength: float = 1.0):
        inner = mhd.algorithms.isolated()
        if strength > 1:
            return inner
        return dataclasses.replace(inner, train_step=lambda *args: inner.train_step(*args))

    programs.clear()
    runs = [{**settings(), "algorithm": decided(strength=s)} for s in (0.5, 2.0)]
    assert len(mhd.simulate_many(runs, eval_every=12)) == 2 and not programs


@pytest.mark.slow
def test_a_run_that_diverges_leaves_the_others_alone(tmp_path, programs):
    runs = [settings(learning_rate=rate, name="isolated") for rate in (0.1, 1e30, 0.2)]
    folders = [tmp_path / str(i) for i in range(3)]
    seen = []
    how = {"workdirs": folders, "callbacks": seen.append, "write_reports": False}
    one, failed, other = mhd.simulate_many(runs, eval_every=6, keep_going=True, **how)
    assert set(programs) == {3} and len(seen) == 4
    assert isinstance(failed, mhd.DivergedError) and not (folders[1] / "summary.json").exists()
    for given, found in ((runs[0], one), (runs[2], other)):
        alone = mhd.simulate(**given, eval_every=6)
        assert_trees_close(params(found), params(alone), **CLOSE)
    with pytest.raises(mhd.DivergedError, match="no longer finite"):
        mhd.simulate_many(runs, eval_every=6)
    (only,) = mhd.simulate_many(runs[1:2], eval_every=6, keep_going=True)
    assert isinstance(only, mhd.DivergedError)


@pytest.mark.slow
def test_a_run_that_was_stopped_stays_so_if_the_others_are_cut(tmp_path, programs):
    cut = True

    def stop_or_cut(record):
        if (record["seed"], record["step"]) == (SEEDS[0], 3):
            raise StopIteration("good enough")
        if cut and record["step"] == 9:
            raise KeyboardInterrupt

    def go():
        several = [arguments("isolated", seed) for seed in SEEDS]
        folders = [tmp_path / str(seed) for seed in SEEDS]
        return mhd.simulate_many(several, eval_every=3, workdirs=folders, callbacks=stop_or_cut)

    with pytest.raises(KeyboardInterrupt):
        go()
    cut = False
    programs.clear()
    stopped, *others = go()
    assert set(programs) == {2} and [result.started_at for result in others] == [9, 9]
    assert (stopped.summary["status"], stopped.summary["steps"]) == ("stopped", 3)
    assert stopped.summary["stopped_because"] == "good enough"
    assert [result.summary["steps"] for result in others] == [12, 12]
    for seed in SEEDS:
        assert has_report(tmp_path / str(seed))


def test_splitting_gives_back_what_was_joined():
    runs = prepared("ccl")
    joined = together(runs)
    carries = [run.start() for run in runs]
    copies = jax.device_get([dataclasses.replace(c, state=c.state.groups) for c in carries])
    for one, other in zip(joined.split(joined.join(carries)), copies, strict=True):
        assert_trees_equal(one.state.groups, other.state)


def first_candidate(key, candidates):
    """A user's own target selection."""
    return candidates.probabilities[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "numbers"),
    [
        *((name, {}, {}) for name in ALGORITHMS),
        ("mhd", {"target_selection": first_candidate}, {"nu_aux": 0.5, "nu_emb": 0.2}),
        ("mhd", {"compression": "top_3"}, {"temperature": 2.0}),
        ("naive", {}, {"nu_naive": 0.5}),
        ("distributed_distillation", {"compression": "int8"}, {"rho": 0.5}),
        ("ccl", {}, {"lambda_m": 0.5, "lambda_d": 0.2}),
        ("dsgd", {}, {"averaging_rate": 0.5}),
        ("dsgd", {"push_sum": True}, {"averaging_rate": 0.5}),
        ("qg_dsgd", {"mu": 0.9}, {"mu": 0.8, "averaging_rate": 0.5}),
        ("idkd", {"start_step": 4}, {"threshold": 0.5, "temperature": 2.0}),
        ("fedproto", {}, {"lambda_p": 0.5}),
        ("fedavg", {"local_epochs": 1.0}, {"local_epochs": 2.0}),
    ],
)
def test_all_algorithms_go_together(name, options, numbers):
    """Whatever their numbers, which no step compares: it is traced here."""
    options = {"label_smoothing": 0.1, **options}
    given = {"topology": mhd.topology.named("complete", 4), "clients": clients(0), **SETTINGS}
    slow, fast = mhd.optim.SGD(0.1), mhd.optim.SGD(0.2, 0.8, weight_decay=1e-2, warmup_steps=0)
    runs = [
        prepare(**given, algorithm=algorithm(name, **options | own), optimizer=optimizer)
        for optimizer, own in ((slow, {}), (fast, {"label_smoothing": 0.3, **numbers}))
    ]
    joined = together(runs)
    differing = joined.numbers["algorithm"]
    assert len(differing) == 1 + len(numbers) and all(a.shape == (2,) for a in differing.values())
    assert joined.numbers["optimizers"][0].keys() == {"learning_rate", "momentum", "weight_decay"}
    joined.lower(joined.join([run.start() for run in runs]))


def test_a_changed_train_step_goes_alone():
    """What a user puts around a step of the library is not left out."""
    inner = algorithm("isolated")
    around = dataclasses.replace(inner, train_step=lambda *args: inner.train_step(*args))
    runs = [
        prepare(graph(0), clients(0), own, **SETTINGS)
        for own in (inner, around, algorithm("isolated", label_smoothing=0.2), around)
    ]
    assert [indices for indices, _ in joining.partition(runs)] == [[0, 2], [1, 3]]
