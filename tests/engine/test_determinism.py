"""One seed, one result: bit for bit however a run is cut, watched or saved; on other devices nearly so."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.engine import stream
from mhd_jax.engine.prepare import prepare
from mhd_jax.models import from_nnx
from tests.builders import (
    OF_THE_HOST,
    ROOT,
    Linear,
    Net,
    SignalAt,
    Streams,
    assert_trees_equal,
    python,
    short,
    tiny_dataset,
)

K = 7  # a multiple of neither 2 nor 5 devices
SETTINGS = {
    "topology": "ring",
    "steps": 12,
    "eval_every": 3,
    "batch_size": 4,
    "public_batch_size": 8,
    "eval_batch_size": 5,
}


def clients(models=None, num_clients=K, **kwargs):
    kwargs = {"partition": "iid", "public_fraction": 0.3, "validation_fraction": 0.2, **kwargs}
    return mhd.make_clients(tiny_dataset(100), num_clients, models or Linear(), **kwargs)


def one_sample_is_no_number(adversaries):
    """Clients of whom the third diverges once it draws that sample."""
    who = clients(adversaries=adversaries)
    inputs = who.data.inputs.copy()
    inputs[np.flatnonzero(who.owner == 2)[-1]] = np.nan
    return dataclasses.replace(who, data=dataclasses.replace(who.data, inputs=inputs))


FAULTS = mhd.Faults(
    link_loss=0.2,
    offline=0.3,
    offline_steps=3,
    stragglers={1: 2},
    joins={0: 3},
    leaves={3: 9},
    participation=0.75,
    participation_steps=4,
)
POOLS = "pools, liars, predictions in 8 bits"
UNLIKE = "ensembles, unlike models with all they may have, another graph at every third step"
RUNS = {name: {"algorithm": name} for name in ALGORITHMS} | {
    POOLS: {
        "algorithm": mhd.algorithms.mhd(
            num_targets="all",
            target_selection="robust",
            pool_size=2,
            pool_refresh=5,
            compression="int8",
        ),
        "clients": clients(adversaries={0: "label_flip", 3: "nan", 6: "uniform"}),
    },
    "error feedback": {"algorithm": mhd.algorithms.distributed_distillation(compression="int8")},
    "faults, quarantine, liars": {
        "algorithm": mhd.algorithms.mhd(num_aux_heads=1, target_selection="robust"),
        "clients": one_sample_is_no_number({1: "nan", 3: "replay"}),
        "faults": FAULTS,
        "on_nonfinite": "quarantine",
    },
    UNLIKE: {
        "algorithm": mhd.algorithms.mhd(
            num_aux_heads=0,
            public_batch="independent",
            embedding_projection="linear",
            ensembles=((0, 1, 2), (3, 4)),
            average_every=5,
        ),
        "clients": clients([from_nnx(Net, 4)] * 3 + [Streams()] * 4),
        "topology": mhd.topology.named("random_matching@0,erdos_renyi@4", K, redraw_every=3),
    },
    "streamed from the host": {"algorithm": "mhd", "data_placement": "host"},
    # Which by default do in so few steps what others do.
    "idkd": {"algorithm": mhd.algorithms.idkd(start_step=4, threshold=0.4)},
    "fedproto": {"algorithm": mhd.algorithms.fedproto(local_steps=5)},
}
# The others are in the long form of the suite.
FEW = ("mhd", "fedmd", "faults, quarantine, liars")
TWO = "two clients, whose samples devices share"
ON_DEVICES = {
    TWO: {"algorithm": "naive", "topology": "complete", "clients": clients(num_clients=2)}
}
CLIENTS = clients()


@pytest.fixture(scope="module", autouse=True)
def blocks_of_five_steps():
    """Where samples are streamed: a run has several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_MOST_STEPS", 5)
        yield


def without(mapping, *keys):
    return {key: value for key, value in mapping.items() if key not in keys}


def simulate(name, workdir=None, seeds=(0,), **how):
    """The first seed's result; the others' runs are in one program with it."""
    settings = {"clients": CLIENTS} | SETTINGS | (RUNS | ON_DEVICES)[name] | how
    of_the_host = {key: value for key, value in settings.items() if key in OF_THE_HOST}
    result, *_ = mhd.simulate_many(
        [{"seed": seed, **without(settings, *OF_THE_HOST)} for seed in seeds],
        **of_the_host,
        workdirs=None if workdir is None else [workdir],
        write_reports=False,
    )
    return result


@functools.cache
def whole(name):
    """The run that all others are compared with: never cut, in as few dispatches as there can be."""
    return simulate(name, steps_per_dispatch=1000)


def one_at_a_time(name, folder):
    return simulate(name, steps_per_dispatch=1)


def watched_and_saved(name, folder):
    """Evaluations and checkpoints at other steps, both in the middle of a dispatch."""
    seen = []
    result = simulate(
        name,
        workdir=folder,
        checkpoint_every=5,
        steps_per_dispatch=2,
        callbacks=[mhd.Callback(), seen.append],
        progress=True,
    )
    assert seen == result.history
    return result


def cut_and_resumed(name, folder):
    with pytest.raises(mhd.InterruptedRun, match=r"stopped at step 8 of 12.*resumes"):
        simulate(name, workdir=folder, callbacks=SignalAt(7), steps_per_dispatch=1)
    assert not (folder / "summary.json").exists()
    resumed = simulate(name, workdir=folder)
    assert resumed.started_at == 8
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history
    return resumed


# Where client 2 is taken out, which is told each time.
TELLS_OF_CLIENT_2 = pytest.mark.filterwarnings("ignore:the loss or the parameters of client 2")


@TELLS_OF_CLIENT_2
@pytest.mark.parametrize("name", short(RUNS, *FEW))
def test_a_run_that_was_cut_ends_as_a_whole_one(name, tmp_path):
    assert_is_whole(name, cut_and_resumed(name, tmp_path / "run"))


@TELLS_OF_CLIENT_2
@pytest.mark.parametrize("way", [one_at_a_time, watched_and_saved])
@pytest.mark.parametrize("name", short(RUNS, *FEW))
def test_one_seed_one_result(name, way, tmp_path):
    assert_is_whole(name, way(name, tmp_path / "run"))


def assert_is_whole(name, result):
    assert_trees_equal(result.state, whole(name).state)
    assert [record["step"] for record in result.history] == [3, 6, 9, 12]
    for one, other in zip(result.history, whole(name).history, strict=True):
        assert without(one, "seconds") == without(other, "seconds")
    assert without(result.summary, "timing") == without(whole(name).summary, "timing")


@TELLS_OF_CLIENT_2
@pytest.mark.parametrize("name", short(RUNS, *FEW))
def test_how_often_is_evaluated_changes_no_result(name):
    often = simulate(name, eval_every=2, steps_per_dispatch=3)
    assert_trees_equal(often.state, whole(name).state)
    assert [record["step"] for record in often.history] == [2, 4, 6, 8, 10, 12]
    at = {record["step"]: record for record in whole(name).history}
    since_the_last = ("train", "non_finite", "seconds")
    for record in often.history[2::3]:
        assert without(record, *since_the_last) == without(at[record["step"]], *since_the_last)
    one, other = (without(result.summary, "timing") for result in (often, whole(name)))
    assert without(one, "settings") == without(other, "settings")
    one, other = (without(summary["settings"], "eval_every") for summary in (one, other))
    assert one == other


@pytest.mark.parametrize("name", short(["mhd", "distributed_distillation"], "mhd"))
def test_streamed_samples_are_the_same(name):
    streamed = simulate(name, data_placement="host")
    assert_trees_equal(streamed.state, whole(name).state)
    one, other = (without(r.summary, "timing", "execution") for r in (streamed, whole(name)))
    assert one == other and streamed.summary["execution"]["data_placement"] == "host"


ANOTHER_PROCESS = ("mhd", "ccl", "fedmd")
OTHER_DEVICES = {
    "five devices, one client at once": ({"num_devices": 5, "client_chunk": 1}, tuple(ALGORITHMS)),
    "five devices": (
        {"num_devices": 5},
        (POOLS, UNLIKE, "idkd", "fedproto", "streamed from the host", TWO),
    ),
    "five devices, two seeds at once": ({"num_devices": 5, "seeds": (0, 1)}, ("naive",)),
}
MOVED = "from five devices to two, two clients at once"
ROUNDING = 1e-5  # largest difference, over the largest number of an array


def parameters(result):
    """Real clients' parameters by name; in a group, those who only fill the devices come last."""
    active = len(result.summary["per_client"])

    def own(group):
        return jax.tree.map(lambda a: a[: sum(i < active for i in group.members)], group.params)

    leaves = jax.tree_util.tree_leaves_with_path([own(group) for group in result.state.groups])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def places(result):
    """On how many devices the clients' state is, and in how many parts each of its arrays."""
    leaves = jax.tree.leaves(result.state.groups)
    devices = {device.id for leaf in leaves for device in leaf.devices()}
    parts = {len({str(part.index[0]) for part in leaf.addressable_shards}) for leaf in leaves}
    return [len(devices), sorted(parts)]


def texts():
    """What each run's step is compiled from, and digests of its programs."""
    found = {}
    for name, run in RUNS.items():
        settings = {"clients": CLIENTS} | without(SETTINGS, "eval_every") | run
        made = prepare(**settings, num_devices=1)
        found[name] = [made.lower(made.carry).as_text(), made.programs]
    return found


def tell_from_elsewhere(folder):
    """What a process with five devices and another hash seed finds, as files."""
    folder = pathlib.Path(folder)
    stream._MOST_STEPS = 5
    (folder / "texts.json").write_text(json.dumps(texts()))

    def tell(name, way, result):
        path = folder / f"{name}, {way}"
        np.savez(path.with_suffix(".npz"), **parameters(result))
        told = {"history": result.history, "summary": result.summary, "places": places(result)}
        path.with_suffix(".json").write_text(json.dumps(told))

    ways = OTHER_DEVICES | {"one device": ({"num_devices": 1}, ANOTHER_PROCESS)}
    for way, (how, names) in ways.items():
        for name in names:
            tell(name, way, simulate(name, **how))

    def stop(record):
        if record["step"] == 6:  # pools were filled anew
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        simulate(POOLS, workdir=folder / "stopped", callbacks=stop, num_devices=5)
    shutil.copytree(folder / "stopped", folder / "moved")
    with pytest.warns(UserWarning, match="devices 5 there, 2 now"):
        moved = simulate(POOLS, workdir=folder / "moved", num_devices=2, client_chunk=2)
    assert moved.started_at == 6
    tell(POOLS, MOVED, moved)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    program = (
        f"from tests.engine import test_determinism as t; t.tell_from_elsewhere({str(folder)!r})"
    )
    done = python(
        *("-c", program),
        cwd=ROOT,
        timeout=500,
        PYTHONHASHSEED="5",
        JAX_ENABLE_COMPILATION_CACHE="false",
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=5",
    )
    assert done.returncode == 0, done.stderr

    def told(name, way):
        path = folder / f"{name}, {way}"
        found = json.loads(path.with_suffix(".json").read_text())
        return {**found, "parameters": dict(np.load(path.with_suffix(".npz")))}

    told.folder = folder
    return told


@pytest.mark.slow
@pytest.mark.parametrize("name", ANOTHER_PROCESS)
def test_another_process_finds_the_same_bit_for_bit(name, elsewhere):
    found = elsewhere(name, "one device")
    assert_trees_equal(found["parameters"], parameters(whole(name)))
    for one, other in zip(found["history"], whole(name).history, strict=True):
        assert without(one, "seconds") == without(other, "seconds")
    assert without(found["summary"], "timing") == without(whole(name).summary, "timing")


@pytest.mark.slow
def test_programs_have_one_text_whatever_the_hash_seed(elsewhere):
    """A second start compiles nothing anew."""
    assert json.loads((elsewhere.folder / "texts.json").read_text()) == texts()


def assert_rounded(found, expected, rounding=ROUNDING):
    """That what was told of a run differs from it by rounding alone."""
    numbers = parameters(expected)
    assert found["parameters"].keys() == numbers.keys()
    for key, value in numbers.items():
        largest = max(np.abs(value).max(), 1e-3)  # what has no gradient is rounding alone
        assert np.abs(found["parameters"][key] - value).max() <= rounding * largest
    for one, other in zip(found["history"], expected.history, strict=True):
        assert (one["step"], one["messages"]) == (other["step"], other["messages"])
        assert one["train"] == pytest.approx(other["train"], rel=rounding, abs=rounding)
    for of in ("beta_sh", "beta_priv"):
        # An answer near a tie may change sides.
        assert found["summary"][of] == pytest.approx(expected.summary[of], abs=0.02)
        if "consensus" in expected.summary:
            consensus = expected.summary["consensus"][of]
            assert found["summary"]["consensus"][of] == pytest.approx(consensus, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "name"), [(way, name) for way, (_, names) in OTHER_DEVICES.items() for name in names]
)
def test_other_devices_and_company_only_round(way, name, elsewhere):
    found = elsewhere(name, way)
    # Those unlike models come to 1.02e-5 in one of their arrays.
    assert_rounded(found, whole(name), 1e-4 if name == UNLIKE else ROUNDING)
    # Every array of the clients' state is split by client; devices may share a client's samples.
    devices = OTHER_DEVICES[way][0]["num_devices"]
    shared = {TWO: [4, [2]], "supervised": [4, [1]]}
    assert found["places"] == shared.get(name, [devices, [devices]])


@pytest.mark.slow
def test_a_checkpoint_moves_to_another_number_of_devices(elsewhere, tmp_path):
    """Stopped on five devices, where seven clients are padded to ten."""
    found = elsewhere(POOLS, MOVED)
    assert_rounded(found, whole(POOLS))
    assert found["places"] == [2, [2]]
    loaded = mhd.load(elsewhere.folder / "moved")  # on one device
    assert_trees_equal(parameters(loaded), found["parameters"])
    shutil.copytree(elsewhere.folder / "stopped", tmp_path / "run")
    with pytest.warns(UserWarning, match="devices 5 there, 1 now"):
        result = simulate(POOLS, workdir=tmp_path / "run")
    assert result.started_at == 6
    told = {"history": result.history, "summary": result.summary}
    assert_rounded({**told, "parameters": parameters(result)}, whole(POOLS))
