"""Copies the libraries that draw charts, and the licences of all that they contain, into the package.

They are installed by npm as `.ci/vendor/package-lock.json` pins them; pages hold them, so that nothing is loaded.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
PINNED, BUILD, TARGET = ROOT / ".ci/vendor", ROOT / "build/vendor", ROOT / "mhd_jax/runs/vendor"
LIBRARIES = ("vega", "vega-lite", "vega-embed")  # in the order in which a page needs them


def main() -> None:
    """Installs, copies, and writes versions, digests and licences beside the copies."""
    for folder in (BUILD, TARGET):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PINNED / name, BUILD)
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=BUILD, check=True
    )
    installed = BUILD / "node_modules"
    versions = {}
    for name in LIBRARIES:
        package = json.loads((installed / name / "package.json").read_text())
        content = (installed / name / "build" / f"{name}.min.js").read_bytes()
        (TARGET / f"{name}.min.js").write_bytes(content)
        versions[name] = {
            "version": package["version"],
            "license": package["license"],
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (TARGET / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    (TARGET / "LICENSES.txt").write_text(licences(installed))


def licences(installed: pathlib.Path) -> str:
    """Returns each licence of the installed packages once, below the names of those that have it."""
    names: dict[str, list[str]] = {}
    for package in sorted(installed.glob("**/package.json")):
        for file in sorted(package.parent.glob("LICEN[CS]E*")):
            text = "\n".join(line.rstrip() for line in file.read_text().strip().splitlines())
            name = json.loads(package.read_text())["name"]
            if name not in names.setdefault(text, []):
                names[text].append(name)
    return "\n\n".join(f"{', '.join(who)}:\n\n{text}" for text, who in names.items()) + "\n"


if __name__ == "__main__":
    main()
