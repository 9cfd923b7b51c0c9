"""Whether runs are what they were: equal ones, rounding, and others."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import unchanged


@pytest.mark.slow
def test_a_run_is_equal_rounded_or_another(call, tmp_path):
    status, out, _ = call(unchanged, "--record=before", "--runs=isolated")
    assert status == 0 and "recorded" in out
    against = ("--against=before", "--runs=isolated")
    status, out, _ = call(unchanged, *against)
    assert status == 0 and "equal" in out

    path = unchanged.path_of(tmp_path / "before", "isolated").with_suffix(".npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    (name, weights) = max(arrays.items(), key=lambda item: item[1].size)
    for change, expected, code in ((1e-6, "rounding", 0), (1e-3, "differs", 1)):
        changed = weights + np.float32(change * np.abs(weights).max())
        np.savez(path, **{**arrays, name: changed})
        status, out, _ = call(unchanged, *against, "--tolerance=1e-5")
        assert (status, expected in out) == (code, True)

    np.savez(path, **arrays)
    told = path.with_suffix(".json")
    found = json.loads(told.read_text())
    found["records"][0]["summary"]["algorithm"] = "another"
    told.write_text(json.dumps(found))
    status, out, _ = call(unchanged, *against)
    assert status == 1 and "algorithm" in out

    before = unchanged.path_of(tmp_path / "before", "isolated, once").with_suffix(".json")
    before.write_text(json.dumps(found | {"name": "isolated, once"}))
    assert unchanged.gone(tmp_path / "before", ["isolated"]) == ["isolated, once"]
    assert unchanged.gone(tmp_path / "before", ["mhd"]) == []


def test_a_folder_without_records_is_refused(refused, tmp_path):
    said = "has a record of none of these runs; name the folder that --record wrote"
    assert said in refused(unchanged, f"--against={tmp_path}", "--runs=isolated")


NOT_FINITE = [1.0, math.nan, math.inf]


@pytest.mark.parametrize(
    ("state", "accuracy", "count", "verdict"),
    [
        (NOT_FINITE, 0.9, 3, "equal"),
        (NOT_FINITE, 0.9 + 1e-9, 3, "differs"),  # although the state is equal
        ([1 + 1e-5, math.nan, math.inf], 0.9, 3, "rounding"),
        ([1 + 1e-5, math.nan, math.inf], 0.88, 3, "rounding"),
        ([1 + 1e-5, math.nan, math.inf], 0.1, 3, "differs"),
        ([1 + 1e-5, math.nan, math.inf], math.nan, 3, "differs"),
        ([1 + 1e-5, math.nan, math.inf], 0.9, 4, "differs"),
        ([1.0, math.inf, math.inf], 0.9, 3, "differs"),
        ([1.0, math.nan, -math.inf], 0.9, 3, "differs"),
        ([1.0, math.nan, 2.0], 0.9, 3, "differs"),
    ],
)
def test_what_rounding_may_change(tmp_path, state, accuracy, count, verdict):
    def found(numbers, beta, count):
        summary = {"beta_sh": {"main": beta}, "messages": count, "timing": 1.0}
        return [SimpleNamespace(state=np.float32(numbers), history=[], summary=summary)]

    unchanged.record(tmp_path, "run", found(NOT_FINITE, 0.9, 3))
    with flagsaver.flagsaver():
        flags.FLAGS(["unchanged", "--tolerance=1e-4"])
        said, _ = unchanged.compared(tmp_path, "run", found(state, accuracy, count))
    assert said == verdict


def test_what_is_missing_is_said(refused):
    for arguments, sentence in (
        ((), "give one of --record and --against"),
        (("--against=nowhere",), "make it by --record="),
        (("--record=/proc/x",), "cannot make the folder of --record /proc/x"),
        (("--record=x", "--runs=no such run"), "no run has no such run in its name"),
    ):
        assert sentence in refused(unchanged, *arguments)
