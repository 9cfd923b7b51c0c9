"""What the repository holds: pinned requirements, and nothing of anyone's machine."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
LOCKS = ("requirements.txt", "requirements-extra.txt")
PIN = re.compile(r"([\w.-]+)==([^ ;]+)(?: ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")


def lines(lock):
    """Those of a file of requirements that pip reads."""
    text = (ROOT / lock).read_text().splitlines()
    return [line for line in text if line and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("lock", LOCKS)
def test_requirements_are_pinned_with_hashes_and_nothing_else(lock):
    kinds = "".join(
        "p" if PIN.fullmatch(s) else "h" if HASH.fullmatch(s) else s for s in lines(lock)
    )
    assert re.fullmatch("(ph+){70,}", kinds)


def test_what_the_project_needs_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = ("dev", "docs", "notebooks", "browser", "tensorboard", "wandb", "supply")
    needed = project["dependencies"] + [each for extra in tested for each in extras[extra]]
    found = [PIN.fullmatch(line) for lock in LOCKS for line in lines(lock)]
    pins = {canonicalize_name(pin[1]): pin[2] for pin in found if pin}
    for requirement in map(Requirement, needed):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
