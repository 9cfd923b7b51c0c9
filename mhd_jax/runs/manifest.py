"""A folder's manifest: the size and the SHA-256 of each of its files, written last.

A folder without a manifest was never finished; a folder that does not match it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mhd_jax.core.files import sync, written_whole

NAME = "manifest.json"


def write(folder: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Writes a folder's manifest after syncing all its files to the disk.

    Args:
      folder: a folder whose files no longer change.
      about: further content of the manifest, JSON-like.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file():
            files[str(path.relative_to(folder))] = {
                "bytes": path.stat().st_size,
                "sha256": _digest(path),
            }
    content = {**about, "files": files}
    with written_whole(folder / NAME) as partial:
        partial.write_text(json.dumps({**content, "sha256": _own_digest(content)}, indent=1))


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a folder's manifest; `ValueError` if the manifest is damaged or missing."""
    try:
        content = json.loads((folder / NAME).read_text())
        own = content.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / NAME} cannot be read") from error
    if own != _own_digest(content):
        raise ValueError(f"{folder / NAME} is not as it was written")
    return content


def damage(folder: pathlib.Path) -> str | None:
    """Returns a phrase about the first damaged file of a folder; None if the folder is intact."""
    try:
        files = read(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, about in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != about["bytes"]:
                return f"{path} has {size:,} bytes instead of {about['bytes']:,}"
            if _digest(path) != about["sha256"]:
                return f"{path} is not as it was written: its SHA-256 differs"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return None


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
