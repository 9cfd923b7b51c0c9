"""The split of training samples: private to one client, public, for validation, or unused."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.validation import require_kinds, require_seed
from mhd_jax.data.partition import Partition


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The role of each training sample.

    Attributes:
      owner: the client of each training sample, int [N]; −1 for samples of no client.
      public: rows of the public set, int [M].
      validation: rows of the validation set, int [V].
    """

    owner: np.ndarray
    public: np.ndarray
    validation: np.ndarray

    def require_exact(self, num_clients: int, source: str) -> None:
        """Raises `ConfigError` if an owner or a row does not exist, or a sample has two roles.

        Args:
          num_clients: K.
          source: the origin of the split, for the error.
        """
        num_samples = len(self.owner)
        if num_samples and (self.owner.min() < -1 or self.owner.max() >= num_clients):
            raise ConfigError(
                f"{source} must give owners in −1 … {num_clients - 1}, but they span "
                f"{self.owner.min()} … {self.owner.max()}."
            )
        rows = np.concatenate([np.flatnonzero(self.owner >= 0), self.public, self.validation])
        if rows.size and (rows.min() < 0 or rows.max() >= num_samples):
            raise ConfigError(
                f"{source} must name training samples in 0 … {num_samples - 1}, but public and "
                f"validation samples span {rows.min()} … {rows.max()}."
            )
        roles = np.bincount(rows, minlength=num_samples)
        if (roles > 1).any():
            raise ConfigError(
                f"{source} gives training sample {roles.argmax()} {roles.max()} roles; a sample is "
                "one client's, public or for validation, and that once."
            )


@dataclasses.dataclass(frozen=True)
class SetAside:
    """The draw of the public and the validation samples.

    Attributes:
      public_fraction, validation_fraction: shares of all training samples.
      seed: the seed of the draw, and of the partition of the other samples.
    """

    public_fraction: float
    validation_fraction: float
    seed: int

    def __post_init__(self):
        require_kinds(self, but=("seed",))
        require_seed(self.seed)
        both = self.public_fraction + self.validation_fraction
        for name, fraction in (
            ("public_fraction", self.public_fraction),
            ("validation_fraction", self.validation_fraction),
            ("public_fraction + validation_fraction", both),
        ):
            if not 0 <= fraction < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {fraction}.")

    def sizes(self, num_samples: int) -> list[int]:
        """Returns M and V, the sizes of the public and the validation set."""
        return [
            round(self.public_fraction * num_samples),
            round(self.validation_fraction * num_samples),
        ]

    def draw(self, candidates: np.ndarray, num_samples: int) -> list[np.ndarray]:
        """Draws public and validation rows; returns these and the other rows, each ascending."""
        order = np.random.default_rng([self.seed, 0]).permutation(candidates)
        return [np.sort(part) for part in np.split(order, np.cumsum(self.sizes(num_samples)))]


def dealt(
    partition: Partition,
    labels: np.ndarray,
    num_clients: int,
    num_classes: int,
    set_aside: SetAside,
) -> Split:
    """Draws public and validation samples, and lets a partition assign the others to clients.

    Args:
      partition: the partition of the private samples.
      labels: the training samples' labels, int [N] in 0 … C − 1.
      num_clients: K.
      num_classes: C.
      set_aside: the public and the validation samples.

    Raises:
      ConfigError: the partition fails, or does not return an integer for each private sample.
    """
    rng = np.random.default_rng([set_aside.seed, 1])

    def owners(private: np.ndarray) -> np.ndarray:
        return _called(partition, labels[private], num_clients, num_classes, rng)

    return assigned(owners, len(labels), set_aside)


def assigned(
    owners: Callable[[np.ndarray], np.ndarray], num_samples: int, set_aside: SetAside
) -> Split:
    """Draws public and validation samples from all, and gives the others to their owners.

    Args:
      owners: a function that returns the owner of each of some rows.
      num_samples: N.
      set_aside: the public and the validation samples.
    """
    public, validation, private = set_aside.draw(np.arange(num_samples), num_samples)
    owner = np.full(num_samples, -1)
    owner[private] = owners(private)
    return Split(owner, public, validation)


def _called(partition: Partition, labels: np.ndarray, *arguments: Any) -> np.ndarray:
    """Calls a partition with the private samples' labels; returns the owners, int [N]."""
    name = getattr(partition, "__name__", type(partition).__name__)
    try:
        inspect.signature(partition).bind(labels, *arguments)
    except TypeError as error:
        raise ConfigError(
            "a partition is a function (labels, num_clients, num_classes, rng) of the private "
            f"samples' labels, which {name} is not: {error}."
        ) from error
    except ValueError:  # builtins without a signature
        pass
    try:
        found = np.asarray(partition(labels, *arguments))
    except ConfigError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise ConfigError(f"the partition {name} failed ({in_a_line(error)}); mend it.") from error
    if found.shape != labels.shape or not np.issubdtype(found.dtype, np.integer):
        raise ConfigError(
            f"the partition {name} must return one integer for each of the {len(labels)} private "
            f"samples, but returned {found.dtype} of shape {list(found.shape)}."
        )
    return found


def completed(owner: np.ndarray, set_aside: SetAside, source: str) -> Split:
    """Returns the split with given owners, with public and validation sets of unowned samples.

    Args:
      owner: the client of each training sample, int [N]; −1 for samples of no client.
      set_aside: the draw of the public and the validation samples.
      source: the origin of the owners, for the error.

    Raises:
      ConfigError: there are too few unowned samples.
    """
    free = np.flatnonzero(owner == -1)
    wanted = sum(set_aside.sizes(len(owner)))
    if wanted > len(free):
        raise ConfigError(
            f"{source} leaves {len(free)} of {len(owner)} samples to nobody (−1), from which "
            f"public_fraction {set_aside.public_fraction} and validation_fraction "
            f"{set_aside.validation_fraction} take {wanted}; lower them (0 takes none), leave more "
            "to nobody, or give another public data set."
        )
    public, validation, _ = set_aside.draw(free, len(owner))
    return Split(owner, public, validation)
