"""The README's programs run as they stand."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(PROGRAMS[number], f"README program {number}", "exec"), names)
    betas = names["result"].summary["beta_sh"]
    assert list(betas) == ["main", "aux_1", "aux_2", "aux_3"]
    if number == 0:
        assert betas["aux_3"] > betas["main"] + 0.1
        assert (tmp_path / "accuracy.png").exists()


def test_there_are_programs():
    assert len(PROGRAMS) == 2
