"""Every preset is what some binary can run, by the command that it opens with."""

import importlib
import re

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import paper_cases
from mhd_jax.cli import cases
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.commands import sweep
from tests.builders import ROOT, short

FOLDER = ROOT / "experiments" / "presets"


PRESETS = sorted(path.stem for path in FOLDER.glob("*.flags"))
MANY_CASES = ("digits_gossip_table_32", "digits_skew")


@pytest.mark.parametrize("stem", short(PRESETS, *(set(PRESETS) - set(MANY_CASES))))
def test_preset(stem):
    preset = FOLDER / f"{stem}.flags"
    opening = "".join(line for line in preset.read_text().splitlines(True) if line.startswith("#"))
    (binary,) = re.findall(r"python -m experiments\.(\w+) --flagfile", opening)
    assert f"--flagfile=experiments/presets/{preset.name}" in opening
    module = importlib.import_module(f"experiments.{binary}")
    with flagsaver.flagsaver():
        for name in flags.FLAGS:
            flags.FLAGS[name].present = 0
        flags.FLAGS([binary, f"--flagfile={preset}"])
        settings = run_flags.settings(strict=module is not sweep)
        assert settings.num_clients > 1
        if module is sweep:
            found, _ = cases.read(cases.grid(cases.axes(flags.FLAGS.grid, "grid")))
            assert len(found) > 5
            if settings.dataset == "digits":
                for case in found:
                    case.settings.check(case.algorithm, seed=0)
        elif binary == "paper":
            questions = paper_cases.questions(settings, flags.FLAGS.other_model, 10)
            assert questions.keys() >= set(flags.FLAGS.questions)
        elif binary == "compare":
            for name in flags.FLAGS.algorithms:
                run_flags.algorithm(name, strict=False)
        elif binary == "train":
            run_flags.algorithm(flags.FLAGS.algorithm, strict=True)
