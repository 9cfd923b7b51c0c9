"""TensorBoard's and wandb's own files hold each evaluation once, seed by seed, across a stop."""

import json
import shutil
import struct

import pytest

import mhd_jax as mhd
from mhd_jax.runs.callbacks.tracker import numbers_of
from tests.builders import tiny_clients

pytestmark = pytest.mark.trackers

SEEDS = (3, 0)
STEPS = [4, 8, 12]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Two seeds, cut after two evaluations and resumed before the second: their folders and histories."""
    folder = tmp_path_factory.mktemp("runs")
    folders = [folder / str(seed) for seed in SEEDS]

    def run(*callbacks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_MODE", "offline")
            return mhd.simulate_seeds(
                ["ring"] * 2,
                [tiny_clients(public_fraction=0.3)] * 2,
                seeds=SEEDS,
                workdirs=folders,
                callbacks=callbacks,
                **{"steps": 12, "eval_every": 4, "checkpoint_every": 6, "steps_per_dispatch": 1},
                **{"batch_size": 4, "public_batch_size": 8},
            )

    class Cut(mhd.Callback):
        def on_steps(self, step, steps_per_second):
            if step == 10:  # evaluated at 8, saved at 6
                raise KeyboardInterrupt

    trackers = [mhd.callbacks.WandB("tests"), mhd.callbacks.TensorBoard()]
    with pytest.raises(KeyboardInterrupt):
        run(*trackers, Cut())
    shutil.rmtree(folders[1] / "tensorboard")  # as if it was not wanted at first
    results = run(*trackers)
    assert [result.started_at for result in results] == [6, 6]
    return folder, {seed: r.history for seed, r in zip(SEEDS, results, strict=True)}


def test_tensorboard(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder, histories = tracked
    for seed, history in histories.items():
        events = EventAccumulator(str(folder / str(seed) / "tensorboard"))
        events.Reload()

        def curve(name, events=events):
            return [(event.step, event.value) for event in events.Scalars(name)]

        names = ["train/aux_loss", "bytes"]
        for head in ("main", "aux_3"):
            names += [f"beta_sh/{head}", f"per_client/beta_priv/{head}/2"]
        for name in names:
            expected = [
                (record["step"], pytest.approx(numbers_of(record)[name])) for record in history
            ]
            assert curve(name) == expected
        assert [step for step, _ in curve("steps_per_second")] == STEPS
        metadata = events.SummaryMetadata("_hparams_/session_start_info")
        started = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
        assert started.hparams["seed"].number_value == seed
        assert "_hparams_/session_end_info" in events.summary_metadata
        assert started.hparams["hyperparameters.nu_aux"].number_value == pytest.approx(0.3)


def test_no_evaluation_is_lost_where_a_process_dies_before_tensorboard_is_told(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    how = {"steps": 6, "eval_every": 2, "batch_size": 4, "workdir": tmp_path, "progress": False}

    def cut(record):  # which has been saved by then
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        callbacks = [cut, mhd.callbacks.TensorBoard()]
        mhd.simulate("ring", tiny_clients(), "isolated", **how, callbacks=callbacks)
    again = mhd.callbacks.TensorBoard()
    assert mhd.simulate("ring", tiny_clients(), "isolated", **how, callbacks=again).started_at == 4
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("beta_sh/main")] == [2, 4, 6]


def test_tensorboard_needs_a_folder():
    how = {"steps": 1, "batch_size": 4, "callbacks": mhd.callbacks.TensorBoard()}
    with pytest.raises(mhd.ConfigError, match="give the run a workdir"):
        mhd.simulate("ring", tiny_clients(), "isolated", **how)


def wandb_records(path):
    """What wandb wrote: protocol buffers in LevelDB's log format, after 7 bytes of a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15  # in this block
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb(tracked):
    folder, histories = tracked
    ids = set()
    for seed, history in histories.items():
        files = sorted((folder / str(seed)).glob("wandb/offline-run-*/*.wandb"))
        assert len(files) == 2  # the cut lies between them
        records = [record for path in files for record in wandb_records(path)]
        runs = [record.run for record in records if record.HasField("run")]
        (run_id,) = {run.run_id for run in runs}
        ids.add(run_id)
        config = {entry.key: json.loads(entry.value_json) for entry in runs[0].config.update}
        assert config["seed"] == seed and config["hyperparameters"]["nu_aux"] == 0.3
        logged = []
        for record in records:
            if record.HasField("history"):
                items = record.history.item
                found = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                assert found["beta_sh/aux_3"] == history[len(logged)]["beta_sh"]["aux_3"]
                assert found["train/loss"] == history[len(logged)]["train"]["loss"]
                logged.append(found["_step"])
        assert logged == STEPS
    assert len(ids) == 2
