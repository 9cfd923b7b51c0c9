"""Splits from files and arrays that name the owner of each training sample.

A run's split.npz holds the whole split: owners, public and validation samples, and a digest of the
training labels. A file made by a user (.csv or .npy), or an array, holds only the owners.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from mhd_jax.core.digests import array_digest
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded, written_whole
from mhd_jax.core.validation import require_clients
from mhd_jax.data.kinds import require_unmasked
from mhd_jax.data.split import SetAside, Split, completed

FORMATS = (".npz", ".npy", ".csv")
_NUMBERING = "numpy.unique(ids, return_inverse=True)[1]"


def is_whole(partition: Any) -> bool:
    """Returns whether a partition is a file with a whole split, so that nothing is drawn."""
    return isinstance(partition, pathlib.Path) and partition.suffix == ".npz"


def save(path: pathlib.Path, split: Split, labels: np.ndarray) -> None:
    """Writes a whole split, with a digest of the training samples' labels [N], to a file.

    Raises:
      ConfigError: the path does not end in `.npz`.
    """
    if not is_whole(path):
        raise ConfigError(f"a split is saved as .npz, not as {path.name}; choose another name.")
    with written_whole(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            owner=split.owner,
            public=split.public,
            validation=split.validation,
            labels_digest=array_digest(labels),
        )


def load(path: pathlib.Path, labels: np.ndarray, num_clients: int, set_aside: SetAside) -> Split:
    """Reads a split from a file.

    Args:
      path: an `.npz` file as `save` writes it; or owners [N] as `.npy`, or as `.csv` with one owner
        a line and an optional header, −1 for unowned samples.
      labels: the training samples' labels, int [N].
      num_clients: K, which must be the number of owners in the file.
      set_aside: the draw of the public and the validation samples from unowned ones, if the file
        holds only owners.

    Raises:
      ConfigError: no such file, a damaged one, one for other data or another K, or too few
        samples to draw from.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"no assignment file {str(path)!r}.")
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path} is not an assignment: give the split.npz of a run, or each training sample's "
            "owner as .npy or .csv."
        )
    stored = _read(path)
    owner = stored["owner"]
    _require_owners(owner, labels, num_clients, str(path))
    if stored.get("labels_digest", array_digest(labels)) != array_digest(labels):
        raise ConfigError(
            f"{path} belongs to other training samples: their labels differ from this data set's."
        )
    if is_whole(path):
        return Split(owner, stored["public"], stored["validation"])
    return completed(owner, set_aside, str(path))


def from_owners(owner: Any, labels: np.ndarray, num_clients: int, set_aside: SetAside) -> Split:
    """Returns the split of owners given as an array or a list [N].

    Args:
      owner: the client of each training sample, −1 for unowned samples.
      labels, num_clients, set_aside: as for `load`.

    Raises:
      ConfigError: owners that are not integers, not one for each sample, or not clients 0 … K − 1,
        or too few samples to draw from.
    """
    require_unmasked(owner, "a partition's owners")
    try:
        found = np.asarray(owner)
    except (TypeError, ValueError) as error:  # e.g. lists of unequal lengths
        raise ConfigError(f"a partition given as owners must be an array [N]: {error}.") from error
    if found.ndim != 1:
        raise ConfigError(
            f"a partition given as owners must have shape [{len(labels)}], the client of each "
            f"training sample, not {list(found.shape)}."
        )
    try:
        found = _integers(found)
    except ValueError as error:
        raise ConfigError(
            f"a partition given as owners must hold clients 0 … K − 1, and −1 for nobody, but {error}; "
            f"number them, as {_NUMBERING} does."
        ) from error
    _require_owners(found, labels, num_clients, "the partition")
    return completed(found, set_aside, "the partition")


def from_rows(
    rows: Mapping[Any, Any], labels: np.ndarray, num_clients: int, set_aside: SetAside
) -> Split:
    """Returns the split in which each client owns the given rows of the training samples.

    Args:
      rows: for each of the clients 0 … K − 1 the rows that it owns, integers; others are unowned.
      labels, num_clients, set_aside: as for `load`.

    Raises:
      ConfigError: other clients, rows that do not exist, a row of two clients, or too few samples
        to draw from.
    """
    require_clients(
        "a partition given as rows must name the clients", rows, num_clients, everyone=True
    )
    owner = np.full(len(labels), -1)
    for client, given in rows.items():
        own = _rows(given, client, len(labels))
        taken = own[owner[own] >= 0]
        if taken.size or len(np.unique(own)) < len(own):
            row = taken[0] if taken.size else own[np.argmax(np.bincount(own)[own] > 1)]
            raise ConfigError(
                f"the partition gives training sample {row} to client {client} and once more; each "
                "sample has one owner."
            )
        owner[own] = client
    return completed(owner, set_aside, "the partition")


def test_owners(given: Any, num_samples: int, num_clients: int) -> np.ndarray:
    """Returns the client of each test sample, int [N], −1 for nobody's.

    Args:
      given: an array or a list, or the path of a `.npy` or `.csv` file as for `load`.
      num_samples: N.
      num_clients: K.

    Raises:
      ConfigError: a file that cannot be read, or anything but N numbers in −1 … K − 1.
    """
    source = "test_partition"
    if isinstance(given, str | os.PathLike):
        path = expanded(given)
        if path.suffix not in (".npy", ".csv") or not path.is_file():
            raise ConfigError(
                f"test_partition must be each test sample's client, or the path of a .npy or .csv "
                f"file with them, not {str(given)!r}."
            )
        source, given = str(path), _read(path)["owner"]
    require_unmasked(given, source)
    try:
        owner = _integers(np.asarray(given))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source} must hold the client of each test sample: {error}.") from error
    if len(owner) != num_samples or owner.min() < -1 or owner.max() >= num_clients:
        span = f" in {owner.min()} … {owner.max()}" if len(owner) else ""
        raise ConfigError(
            f"{source} must hold one of the clients 0 … {num_clients - 1}, or −1, for each of the "
            f"{num_samples} test samples, but holds {len(owner)}{span}."
        )
    return owner


def _rows(given: Any, client: Any, num_samples: int) -> np.ndarray:
    try:
        rows = np.asarray(given)
    except (TypeError, ValueError):  # e.g. lists of unequal lengths
        rows = np.zeros((0, 0))
    if rows.shape == (0,):
        return np.zeros(0, int)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= num_samples:
        raise ConfigError(
            f"the partition must give client {client} rows of the training samples, integers in "
            f"0 … {num_samples - 1}, not {rows.dtype} {list(rows.shape)}"
            + (
                f" in {rows.min()} … {rows.max()}."
                if rows.dtype.kind in "iu" and rows.size
                else "."
            )
        )
    return rows.astype(int)


def _require_owners(owner: np.ndarray, labels: np.ndarray, num_clients: int, source: str) -> None:
    """Raises `ConfigError` unless owners match the labels and each of the K clients owns some."""
    if owner.shape != labels.shape:
        raise ConfigError(
            f"{source} must hold one owner for each of the {len(labels)} training samples, but holds "
            f"{len(owner)}."
        )
    found = int(owner.max()) + 1
    missing = np.setdiff1d(np.arange(min(found, len(owner))), owner)
    if missing.size:
        raise ConfigError(
            f"{source} gives client {missing[0]} no samples; number its clients without gaps, as "
            f"{_NUMBERING} does."
        )
    if found != num_clients:
        raise ConfigError(
            f"{source} assigns samples to {found} clients, but num_clients is {num_clients}; "
            "make the two equal."
        )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file's arrays by name; rows and owners are int64."""
    try:
        if path.suffix == ".csv":
            return {"owner": _from_csv(path)}
        found = np.load(path, allow_pickle=False)
        if isinstance(found, NpzFile) != is_whole(path):
            raise ValueError("its content is of another format than its ending says")
        if not is_whole(path):
            return {"owner": _integers(found)}
        with found:
            rows = {name: _integers(found[name]) for name in ("owner", "public", "validation")}
            return rows | {"labels_digest": str(found["labels_digest"])}
    except ConfigError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many types
        raise ConfigError(f"{path} is not a readable assignment: {error}.") from error


def _from_csv(path: pathlib.Path) -> np.ndarray:
    owners: list[int] = []
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                owners.append(int(line))
            except ValueError:
                if number > 1:  # the first line may be a header
                    raise ConfigError(
                        f"{path}, line {number}: expected the client of a sample, or −1, found "
                        f"{line.strip()!r}."
                    ) from None
    return np.array(owners, np.int64)


def _integers(array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"it holds {array.dtype} {list(array.shape)}, not integers in one row")
    if array.size and array.max() >= 2**63:  # e.g. an unsigned −1
        raise ValueError(f"it holds {array.max()}, which is no client and no row")
    return array.astype(np.int64)
