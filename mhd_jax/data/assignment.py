"""Files that say who owns which training sample.

A run's split.npz holds the whole split: owners, public and validation samples, and a digest of
the labels that they belong to. A file made by hand (.csv or .npy) holds the owners alone.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from mhd_jax.data.split import SetAside, Split, completed
from mhd_jax.errors import ConfigError
from mhd_jax.files import written_whole
from mhd_jax.fingerprint import array_digest

FORMATS = (".npz", ".npy", ".csv")


def is_whole(partition: Any) -> bool:
    """Whether a partition is a file that holds all of a split: nothing is drawn beside it."""
    return isinstance(partition, pathlib.Path) and partition.suffix == ".npz"


def save(path: pathlib.Path, split: Split, labels: np.ndarray) -> None:
    """Writes a whole split and a digest of the training samples' labels [N].

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
    """The split that a file describes.

    Args:
      path: `.npz` as `save` writes it; or owners [N] as `.npy`, or as `.csv` with one a line and
        perhaps a header, −1 for samples that nobody owns.
      labels: of the training samples, int [N].
      num_clients: K, as many as own something in the file.
      set_aside: the public and the validation samples, drawn from those that nobody owns where
        the file holds owners alone.

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
    if owner.shape != labels.shape:
        raise ConfigError(
            f"{path} must hold one owner for each of the {len(labels)} training samples, but holds "
            f"{len(owner)}."
        )
    if stored.get("labels_digest", array_digest(labels)) != array_digest(labels):
        raise ConfigError(
            f"{path} belongs to other training samples: their labels differ from this data set's."
        )
    found = int(owner.max()) + 1
    if found != num_clients:
        raise ConfigError(
            f"{path} assigns samples to {found} clients, but num_clients is {num_clients}; "
            "make the two equal."
        )
    missing = np.setdiff1d(np.arange(num_clients), owner)
    if missing.size:
        raise ConfigError(
            f"{path} gives client {missing[0]} no samples; number its clients without gaps."
        )
    if is_whole(path):
        return Split(owner, stored["public"], stored["validation"])
    return completed(owner, set_aside, str(path))


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What a file holds, by name; rows and owners are int64."""
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
    except Exception as error:  # NumPy, zipfile and zlib have many
        raise ConfigError(f"{path} is not a readable assignment: {error}.") from error


def _from_csv(path: pathlib.Path) -> np.ndarray:
    owners: list[int] = []
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                owners.append(int(line))
            except ValueError:
                if number > 1:  # the first may be a header
                    raise ConfigError(
                        f"{path}, line {number}: expected the client of a sample, or −1, found "
                        f"{line.strip()!r}."
                    ) from None
    return np.array(owners, np.int64)


def _integers(array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"it holds {array.dtype} {list(array.shape)}, not integers in one row")
    return array.astype(np.int64)
