"""Who owns which private sample.

A partition is a function `(labels [N], num_clients, num_classes, rng) -> owner [N]`: the client
of each sample, or −1 for a sample that nobody gets. One owner a sample makes the clients'
data disjoint by construction. A user's function of this form works wherever these do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mhd_jax.errors import ConfigError

Partition = Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class PrimaryLabels:
    """The MHD paper's skew: every client has primary labels, of which it gets more.

    A sample with label y goes to client i with probability proportional to 1 + s where y is
    among i's primary labels, to 1 elsewhere. A class that is nobody's primary label spreads
    evenly.

    Attributes:
      labels_per_client: how many primary labels a client has.
      skew: s; 0 is iid, 100 strongly skewed, infinity gives primary labels only.
      assignment: "balanced" makes each label primary for equally many clients (± 1);
        "random" draws each client's labels on its own.
    """

    labels_per_client: int = 2
    skew: float = 100.0
    assignment: str = "balanced"

    def __post_init__(self):
        if not self.skew >= 0:
            raise ConfigError(f"skew must be at least 0 (or inf), not {self.skew}.")
        if self.labels_per_client < 1:
            raise ConfigError(
                f"labels_per_client must be at least 1, not {self.labels_per_client}."
            )
        if self.assignment not in ("balanced", "random"):
            raise ConfigError(
                f"assignment must be 'balanced' or 'random', not {self.assignment!r}."
            )

    def primary_labels(
        self, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Which labels are primary for whom, bool [K, C].

        Raises:
          ConfigError: more primary labels than classes.
        """
        if self.labels_per_client > num_classes:
            raise ConfigError(
                f"labels_per_client is {self.labels_per_client}, but there are only {num_classes} "
                f"classes; choose at most {num_classes}."
            )
        primary = np.zeros((num_clients, num_classes), bool)
        times_used = np.zeros(num_classes, int)
        for client in range(num_clients):
            # Least used first where balanced, ties (or everything) in random order.
            tie_break = rng.permutation(num_classes)
            order = (
                np.lexsort((tie_break, times_used)) if self.assignment == "balanced" else tie_break
            )
            chosen = order[: self.labels_per_client]
            primary[client, chosen] = True
            times_used[chosen] += 1
        return primary

    def __call__(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Owner of each sample, int [N]."""
        primary = self.primary_labels(num_clients, num_classes, rng)
        weights = np.ones((num_clients, num_classes))
        if np.isinf(self.skew):
            owned = primary.any(axis=0)
            weights[:, owned] = primary[:, owned]
        else:
            weights += self.skew * primary
        cumulative = np.cumsum(weights / weights.sum(axis=0), axis=0)  # [K, C]
        cumulative[-1] = 1
        draws = rng.random(len(labels))
        return (draws[:, None] >= cumulative.T[labels]).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class IID:
    """Every sample goes to a client at random; sizes are equal (± 1)."""

    def __call__(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Owner of each sample, int [N]."""
        return rng.permutation(np.arange(len(labels)) % num_clients)


# How users spell them: mhd.partition.primary_labels(labels_per_client=2, skew=100.0).
primary_labels = PrimaryLabels
iid = IID
PARTITIONS: dict[str, type] = {"primary_labels": PrimaryLabels, "iid": IID}
