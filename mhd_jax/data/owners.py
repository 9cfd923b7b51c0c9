"""Samples with natural owners, such as hospitals, writers or users: each owner is one client."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import shortened
from mhd_jax.data.kinds import require_unmasked
from mhd_jax.data.split import SetAside, Split, assigned

_MOST_NAMED = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Owners:
    """The owner of each sample of a data set.

    Attributes:
      names: K names, sorted; owner i is client i.
      of_training: the owner of each training sample, int [N] in 0 … K − 1.
      of_test: the owner of each test sample, int [N_test]; −1 for an owner without training
        samples; None if they are not known.
    """

    names: tuple[str, ...]
    of_training: np.ndarray
    of_test: np.ndarray | None = None

    def held_out(self, training: np.ndarray, test: np.ndarray) -> Owners:
        """Returns the owners after `test` rows of the training samples became test samples.

        Raises:
          ConfigError: an owner has no training sample left.
        """
        found = Owners(self.names, self.of_training[training], self.of_training[test])
        emptied = np.setdiff1d(np.arange(len(self.names)), found.of_training)
        if emptied.size:
            raise ConfigError(
                f"the test split takes every sample of the owner {self.names[emptied[0]]}; leave that "
                "owner out, or lower test_fraction."
            )
        return found

    def split(self, num_clients: int, set_aside: SetAside) -> Split:
        """Draws public and validation samples from all samples; the others go to their owners.

        Raises:
          ConfigError: there are not `num_clients` owners.
        """
        if num_clients != len(self.names):
            raise ConfigError(
                f"the data has {len(self.names)} owners ({self._shown()}), each of which is a client, "
                f"but num_clients is {num_clients}; set it to {len(self.names)}, or choose a partition "
                "that does not go by owners."
            )
        return assigned(lambda rows: self.of_training[rows], len(self.of_training), set_aside)

    def _shown(self) -> str:
        return ", ".join(shortened(self.names, _MOST_NAMED))


def owners_of(ids: Any, test_ids: Any, num_training: int, num_test: int | None) -> Owners:
    """Numbers the owners of samples in the order of their sorted names.

    Args:
      ids: the owner of each training sample, an array or a list of N numbers or texts; or a dict
        from owners to the rows of their samples, which names each row once.
      test_ids: the same of the test samples, where the text "7" is the owner of the number 7; None
        if their owners are not known.
      num_training: N.
      num_test: the number of test samples; None if there are none.

    Raises:
      ConfigError: not one owner for each sample, or owners that are neither numbers nor texts.
    """
    training = _ids(ids, num_training, "owners")
    names, numbers = np.unique(training, return_inverse=True)
    if test_ids is None:
        return Owners(tuple(map(str, names)), numbers)
    if num_test is None:
        raise ConfigError("test_owners are those of a test split; give one, or leave them out.")
    test = _ids(test_ids, num_test, "test_owners")
    # By their texts, as one may have numbers of another type, or numbers where the other has texts.
    clients = {str(name): client for client, name in enumerate(names)}
    found, of_found = np.unique(test, return_inverse=True)
    of_test = np.array([clients.get(str(name), -1) for name in found], int)[of_found]
    return Owners(tuple(clients), numbers, of_test)


def _ids(given: Any, num_samples: int, what: str) -> np.ndarray:
    """Returns the owner of each sample, integers or texts [N]."""
    if isinstance(given, Mapping):
        given = _of_rows(given, num_samples, what)
    require_unmasked(given, what)
    try:
        found = np.asarray(given)
    except ValueError as error:  # lists of unequal lengths
        raise ConfigError(f"{what} must be an array [N]: {error}.") from error
    if found.dtype.kind == "O" and all(isinstance(each, str) for each in found.flat):
        found = found.astype(str)
    if found.shape != (num_samples,) or found.dtype.kind not in "iuUS":
        raise ConfigError(
            f"{what} must hold the owner of each of the {num_samples} samples, a whole number or a "
            f"text, but hold {found.dtype} of shape {list(found.shape)}."
        )
    return found.astype(str) if found.dtype.kind == "S" else found


def _of_rows(given: Mapping[Any, Any], num_samples: int, what: str) -> list[Any]:
    """Returns the owner of each sample from the rows of each owner."""
    owner: list[Any] = [None] * num_samples
    for name, rows in given.items():
        try:
            numbers = np.asarray(rows).ravel().tolist()
        except ValueError as error:  # lists of unequal lengths
            raise ConfigError(f"{what} of {name} must be a list of rows: {error}.") from error
        for row in numbers:
            if not isinstance(row, int) or not 0 <= row < num_samples or owner[row] is not None:
                raise ConfigError(
                    f"{what} give {name} the row {row!r}; rows are numbers in 0 … {num_samples - 1}, "
                    "each of one owner."
                )
            owner[row] = name
    if None in owner:
        raise ConfigError(
            f"{what} leave sample {owner.index(None)} to nobody; give each an owner, or give the rows "
            "of clients as a partition, where samples of nobody may be public."
        )
    return owner
