"""Checkpoints: what is damaged is found and named, what is whole is kept, and goes on elsewhere."""

import contextlib
import json
import shutil
import subprocess
import time
import warnings

import pytest

import mhd_jax as mhd
from mhd_jax.runs import manifest
from mhd_jax.runs.checkpoints import Keep
from tests.builders import Linear, assert_trees_equal, simulate_in, thinned, tiny_dataset

STEPS = 20


def clients(**kwargs):
    kwargs = {"partition": "iid", "public_fraction": 0.0, **kwargs}
    return mhd.make_clients(tiny_dataset(), 2, Linear(), **kwargs)


def run(workdir, algorithm="isolated", steps=STEPS, who=None, **kwargs):
    sizes = {"steps": steps, "batch_size": 4, "eval_batch_size": 5, "eval_every": 5}
    return simulate_in(workdir, "complete", who or clients(), algorithm, **sizes, **kwargs)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run that has kept the checkpoints of steps 10, 15 and 20."""
    folder = tmp_path_factory.mktemp("original") / "run"
    return folder, run(folder, keep_checkpoints=3)


@pytest.fixture
def cut(original, tmp_path):
    """A copy of it, as if killed before the summary was written."""
    shutil.copytree(original[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def largest(folder, step):
    files = (f for f in (folder / "checkpoints" / str(step)).rglob("*") if f.is_file())
    return max(files, key=lambda f: f.stat().st_size if f.name != manifest.NAME else 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    thinned(
        [
            (flip, "is not as it was written: its SHA-256 differs"),
            (cut_short, r"has [\d,]+ bytes instead of [\d,]+"),
            (lambda path: path.unlink(), "is missing"),
        ],
        2,
    ),
)
def test_a_damaged_file_is_named_and_an_earlier_checkpoint_serves(change, sentence, cut, original):
    damaged = largest(cut, 20)
    change(damaged)
    with pytest.raises(mhd.ConfigError, match=rf"{damaged} {sentence}.*--fall_back"):
        run(cut)
    with pytest.warns(UserWarning, match=rf"step 20 is damaged and passed over: {damaged}"):
        resumed = run(cut, fall_back=True)
    assert resumed.started_at == 15
    assert_trees_equal(resumed.state, original[1].state)
    assert [record["step"] for record in resumed.history] == [5, 10, 15, 20]
    assert run(cut).started_at == 20  # and step 20 has been saved anew


def test_a_flipped_bit_of_any_file_is_found(original, tmp_path):
    folder = tmp_path / "20"
    shutil.copytree(original[0] / "checkpoints" / "20", folder)
    files = [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) > 5 and manifest.damage(folder) is None
    for path in files:
        before = path.read_bytes()
        flip(path)
        assert str(path) in manifest.damage(folder)
        path.write_bytes(before)
    assert manifest.damage(folder) is None


def test_what_a_killed_save_has_left_is_no_checkpoint(cut):
    (cut / "checkpoints" / "20" / manifest.NAME).unlink()
    (cut / "checkpoints" / "25.orbax-checkpoint-tmp").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = run(cut)
    assert resumed.started_at == 15 and saved(cut) == [15, 20]


def test_checkpoints_that_a_killed_process_was_to_remove_go(cut):
    assert saved(cut) == [10, 15, 20]  # the last one has its manifest
    assert run(cut).started_at == 20 and saved(cut) == [15, 20]


def test_without_a_whole_checkpoint_a_run_is_refused(cut):
    for step in (10, 15, 20):
        flip(largest(cut, step))
    with pytest.raises(mhd.ConfigError, match=r"all checkpoints are damaged.*start the run anew"):
        run(cut, fall_back=True)


def test_a_finished_run_whose_last_checkpoint_is_damaged(original, tmp_path):
    folder, whole = original
    shutil.copytree(folder, tmp_path / "run")
    flip(largest(tmp_path / "run", 20))
    with pytest.raises(mhd.ConfigError, match="step 20 is damaged"):
        run(tmp_path / "run")
    with pytest.warns(UserWarning, match="step 20 is damaged"):
        read = run(tmp_path / "run", fall_back=True)
    assert read.state is None and read.history == whole.history


def test_another_version_of_the_folder_is_refused(cut):
    config = json.loads((cut / "config.json").read_text())
    del config["format"]  # as before there were any
    (cut / "config.json").write_text(json.dumps(config))
    other = r"made by another version of mhd_jax.*another workdir"
    with pytest.raises(mhd.ConfigError, match=other):
        run(cut)


def test_hyperparameters_that_a_folder_does_not_know_are_at_their_defaults(cut):
    """Those of a later version: at the default a run goes on, at another value it is another run."""
    config = json.loads((cut / "config.json").read_text())
    (name,) = config["settings"]["hyperparameters"]
    del config["settings"]["hyperparameters"][name]
    (cut / "config.json").write_text(json.dumps(config))
    assert run(cut).started_at == 20
    (cut / "summary.json").unlink()
    with pytest.raises(mhd.ConfigError, match=f"hyperparameters.{name} is 0.1 there and 0.2 now"):
        run(cut, mhd.algorithms.isolated(label_smoothing=0.2))


@pytest.mark.slow
def test_other_packages_are_told_of_and_other_contents_refused(cut):
    folder = cut / "checkpoints" / "20"
    about = manifest.read(folder)["about"]
    about["environment"]["jax"] = "0.0.1"
    (folder / manifest.NAME).unlink()
    manifest.write(folder, {"about": about})
    with pytest.warns(UserWarning, match=r"saved elsewhere \(jax 0.0.1 there, .* not bit for bit"):
        assert run(cut).started_at == 20

    (cut / "summary.json").unlink()
    run(cut.parent / "other", "dsgd", steps=5)
    shutil.rmtree(folder)
    shutil.copytree(cut.parent / "other" / "checkpoints" / "5", folder)
    with pytest.raises(mhd.ConfigError, match="does not hold what this run saves"):
        run(cut)


def test_lost_lines_of_metrics_are_missed(cut):
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(mhd.ConfigError, match="holds 3 evaluations up to step 20, but 4 were"):
        run(cut)


def test_a_process_killed_at_its_very_start_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"form')
    assert run(tmp_path, steps=5).started_at == 0


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        (Keep(1), {4}),
        (Keep(3), {2, 3, 4}),
        (Keep(1, best=True), {2, 4}),  # the earlier one of equals
        (Keep(3, best=True), {2, 3, 4}),
    ],
)
def test_which_checkpoints_stay(keep, steps):
    assert keep.chosen({1: 0.5, 2: 0.7, 3: 0.7, 4: None}) == steps


def test_the_best_state_on_the_validation_set_is_kept(tmp_path):
    """A learning rate that unlearns: the best state is not the last one."""
    unlearning = mhd.optim.SGD(3.0, schedule="constant")
    options = {"keep_checkpoints": 1, "keep_best": True, "optimizer": unlearning}
    options["who"] = clients(validation_fraction=0.3)
    result = run(tmp_path, checkpoint_every=20, **options)
    scores = {r["step"]: r["validation"]["beta_sh"]["main"] for r in result.history}
    best = max(scores, key=lambda step: scores[step])  # the first of equals
    assert best < STEPS and saved(tmp_path) == sorted({best, STEPS})
    assert int(result.best.step) == best and int(result.state.step) == STEPS
    assert_trees_equal(run(tmp_path, **options).best, result.best)
    with pytest.raises(mhd.ConfigError, match="there is none; set validation_fraction"):
        run(tmp_path / "without", keep_best=True)


@pytest.mark.slow
def test_the_best_step_may_be_the_last_on_a_slow_disk(tmp_path, monkeypatch):
    write = manifest.write

    def slowly(*args):
        time.sleep(0.3)
        write(*args)

    monkeypatch.setattr(manifest, "write", slowly)
    options = {"keep_checkpoints": 1, "keep_best": True, "who": clients(validation_fraction=0.3)}
    options["optimizer"] = mhd.optim.SGD(0.02, schedule="constant")
    result = run(tmp_path, **options)
    scores = {r["step"]: r["validation"]["beta_sh"]["main"] for r in result.history}
    *others, last = scores.values()
    assert last > max(others)
    assert result.summary["best_step"] == int(result.best.step) == STEPS == saved(tmp_path)[0]


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("making a small disk needs the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk, original):
    ballast = small_disk / "ballast"

    def fill(record):
        if record["step"] == 10:
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    for callbacks in (fill, ()):
        with pytest.raises(mhd.StorageError, match=r"cannot be written \(No space left on"):
            run(small_disk / "run", callbacks=callbacks)
    ballast.unlink()
    resumed = run(small_disk / "run")
    assert resumed.started_at in (5, 10)  # whether the second save came before the ballast
    assert_trees_equal(resumed.state, original[1].state)
    assert [record["step"] for record in resumed.history] == [5, 10, 15, 20]


def test_a_run_that_kept_no_best_state_has_none(tmp_path):
    who = clients(validation_fraction=0.3)
    run(tmp_path, who=who)
    assert run(tmp_path, who=who, keep_best=True).best is None
