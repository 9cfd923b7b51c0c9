"""What commands print for machines, and what `--dry_run` tells before a run."""

import json
import pathlib

import pytest

from mhd_jax.cli.commands import compare, show, train
from tests.builders import SMALL


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_tells_what_the_run_then_takes(output, refused):
    given = [*SMALL, "--algorithm=dsgd", "--workdir=w"]
    told = json.loads(output(train, *given, "--dry_run", "--json"))
    text = output(train, *given, "--dry_run")
    assert list(pathlib.Path().iterdir()) == []
    (model,) = told["models"]
    assert f"{model['parameters']:,} parameters" in text and "it fits" in text
    assert "6 steps, 2 evaluations" in text and "  optimizer.learning_rate: 0.03\n" in text

    done = json.loads(output(train, *given, "--json"))
    assert done["settings"] == told["settings"]
    for name in ("algorithm", "dataset", "num_clients", "seed", "steps"):
        assert done[name] == told[name]
    assert done["communication"]["total_bytes"] == told["communication"]["total_bytes"] > 0
    assert done["data"]["samples"] == told["samples"]
    assert len(pathlib.Path("w/metrics.jsonl").read_text().splitlines()) == told["evaluations"]
    said = refused(train, *given, "--dry_run", "--seed=1")
    assert "w holds a run with other settings" in said

    assert json.loads(output(show, "w", "--json")) == done
    assert json.loads(output(train, *given, "--json")) == done  # which has finished


@pytest.mark.slow
def test_a_comparison_is_one_object(output):
    given = [*SMALL, "--algorithms=isolated,dsgd", "--seeds=1", "--workdir=c", "--json"]
    found = json.loads(output(compare, *given))
    assert found.pop("folder") == "c"
    assert found == json.loads(pathlib.Path("c/table.json").read_text())
