"""What the repository holds: pinned requirements, and nothing of anyone's machine."""

import re
import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.builders import ROOT

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
    tested = (
        "dev",
        "docs",
        "notebooks",
        "browser",
        "tensorboard",
        "wandb",
        "search",
        "supply",
        "tfds",
        "arrow",
    )
    needed = project["dependencies"] + [each for extra in tested for each in extras[extra]]
    found = [PIN.fullmatch(line) for lock in LOCKS for line in lines(lock)]
    pins = {canonicalize_name(pin[1]): pin[2] for pin in found if pin}
    for requirement in map(Requirement, needed):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


# Brackets keep a pattern from finding itself here.
FOREIGN = {
    "a path of one machine": r"(?<![\w.$}])/(root|home/\w+|Users/\w+|opt|work|tmp|mnt)\b|\b[A-Z]:\\+Users",
    "a package index": r"pypi[.]org|python[h]osted|index[-]url|find[-]links|trusted[-]host",
    "a private key": r"BEGIN[ ][A-Z ]*PRIVATE KEY",
    "a key of AWS": r"\bA(KIA|SIA)[0-9A-Z]{16}\b",
    "a token of GitHub": r"\bgh[opsur]_\w{36}|github[_]pat_\w{22}",
    "a token of another service": r"\b(sk|xox[abprs]|hf|glpat|pypi)[-_]\w[\w-]{19}",
    "a secret by its name": r"(?i)(api_?key|secret|token|passw(or)?d)['\"]?\s*[:=]\s*['\"]?[\w/+-]{20}",
}


def findings(text):
    return [what for what, pattern in FOREIGN.items() if re.search(pattern, text)]


def test_nothing_of_anyones_machine_and_no_secret_is_in_the_repository():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only git knows which files are the repository's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0")]
    texts = {str(path): path.read_text(errors="replace") for path in paths if path.is_file()}
    assert len(texts) > 100
    found = {path: findings(text) for path, text in texts.items() if findings(text)}
    assert found == {}


@pytest.mark.parametrize(
    "parts",  # two, so that this file holds none of them
    [
        ("'/ro", "ot/data'"),
        ("see /ho", "me/anna/runs"),
        ("--data=/Us", "ers/anna"),
        ("C:\\\\Us", "ers\\\\anna"),
        ("`/t", "mp/run`"),
        ("--extra-index", "-url https://packages.example"),
        ("-----BEGIN RSA PRIV", "ATE KEY-----"),
        ("AKI", "A" * 17),
        ("gh", "p_" + "a1" * 18),
        ("sk", "-" + "a1" * 18),
        ("WANDB_API", "_KEY=" + "0af" * 14),
        ('"pass', 'word": "' + "a1" * 10),
    ],
)
def test_what_must_not_be_there_would_be_found(parts):
    assert findings("".join(parts))
