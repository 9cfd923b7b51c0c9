"""Folders of runs whose files went bad: refused, or taken up as if nothing had been."""

import functools
import json
import pathlib
import shutil
import tempfile
import warnings

from hypothesis import strategies as st

from tests.builders import simulate_in, tiny_clients
from tests.fuzzing.kinds import attempt, damages, kind, scratch

SETTINGS = {"steps": 4, "eval_every": 2, "batch_size": 4, "num_devices": 1}
OTHER_JSON = ["", "{}", "[]", "null", "5", "NaN", "\ufeff{}", "[" * 100_000, '{"settings": {}}']
OTHER_JSON += ['{"settings": []}', '{"status": "finished"}', '{"step": 2}', '{"step": 2}\n' * 9]
OTHER_JSON += ['{"status": "finished", "steps": 4, "beta_sh": {}}', '{"step": 1e999}']
OTHER_JSON += ['{"settings": {"steps": ' + "9" * 5000]


@functools.cache
def clients():
    return tiny_clients(2)


def run(workdir):
    """The run, in this folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return simulate_in(workdir, "complete", clients(), "isolated", **SETTINGS)


@functools.cache
def whole():
    """A folder of the run, finished, and its result."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mhd_jax_fuzzing_")) / "run"
    return folder, run(folder)


@st.composite
def bad_folders(draw):
    """Which file goes bad, what is in it then, and whether the run had finished."""
    name = draw(st.sampled_from(["config.json", "metrics.jsonl", "summary.json", "split.npz"]))
    replaced = draw(st.one_of(st.none(), st.sampled_from(OTHER_JSON), st.just(None)))
    finished = name in ("metrics.jsonl", "summary.json") or draw(st.booleans())
    return name, replaced, draw(damages()), finished


@kind(bad_folders(), examples=3)
def folders_of_runs(case):
    name, replaced, damage, finished = case
    original, expected = whole()
    with scratch() as root:
        folder = root / "run"
        shutil.copytree(original, folder)
        if not finished:
            (folder / "summary.json").unlink()
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(damage(content) if replaced is None else replaced.encode())
        same = path.read_bytes() == content
        before = path.read_bytes()
        result, why = attempt(lambda: run(folder))
        if why or finished:
            assert path.read_bytes() == before  # for the user to look at
    if same or name == "split.npz":
        assert why is None, why
    if why:
        return False
    assert result.summary["status"] == "finished" and result.summary["steps"] == 4
    assert {"main"} == result.summary["beta_sh"].keys() == result.summary["beta_priv"].keys()
    assert all(isinstance(record["step"], int) for record in result.history)
    if name != "summary.json":
        assert result.summary["beta_sh"] == expected.summary["beta_sh"]
        found, known = (json.dumps(each.summary["per_client"]) for each in (result, expected))
        assert found == known  # where numbers may be NaN
    result.plot()
    return True
