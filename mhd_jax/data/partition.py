"""Partitions of private samples among the clients.

A partition is a function `(labels [N], num_clients, num_classes, rng) -> owner [N]`: the client
of each sample, or −1 for a sample that no client gets. As each sample has one owner, the clients'
data are disjoint. A user's function of this form can be used like the partitions here.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded
from mhd_jax.core.validation import is_number, require_kinds

Partition = Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class PrimaryLabels:
    """The MHD paper's label skew: each client gets more samples of its primary labels.

    A sample with label y goes to client i with probability proportional to 1 + s if y is one of
    i's primary labels, and to 1 otherwise. A class that is no client's primary label is spread
    evenly.

    Attributes:
      labels_per_client: the number of primary labels of a client.
      skew: s; 0 is iid, 100 strongly skewed, infinity gives primary labels only.
      assignment: "balanced" makes each label primary for equally many clients (± 1);
        "random" draws each client's labels on its own.
    """

    labels_per_client: int = 2
    skew: float = 100.0
    assignment: str = "balanced"

    def __post_init__(self):
        require_kinds(self, but=("skew",))
        if not is_number(self.skew) or self.skew < 0:
            raise ConfigError(f"skew must be at least 0 (or inf), not {self.skew!r}.")
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
        """Draws which labels are primary for each client, bool [K, C].

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
            # If balanced, the least used labels come first, and ties are in random order.
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
        """Draws the owner of each sample, int [N]."""
        primary = self.primary_labels(num_clients, num_classes, rng)
        weights = np.ones((num_clients, num_classes))
        if np.isinf(float(self.skew) * num_clients):  # also a skew whose sum overflows
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
    """Deals samples to the clients uniformly at random; the clients' sizes are equal (± 1)."""

    def __call__(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws the owner of each sample, int [N]."""
        return rng.permutation(np.arange(len(labels)) % num_clients)


@dataclasses.dataclass(frozen=True)
class Dirichlet:
    """Deals each class to the clients in proportions drawn from a Dirichlet distribution.

    Attributes:
      alpha: α of the symmetric distribution; small is skewed (0.1), large nearly iid.
      balanced: whether to use the CCL authors' variant, in which clients have equal sizes (± 1).
        Clients form groups of 10, and the rest one more group, each with its part of the samples.
        A group deals one class after the other; a client with its fair share gets no more samples;
        the group's draw is repeated until its smallest client has half its share. Then the
        clients' lists, each sorted by class, are joined and cut into equal slices.
      min_samples: the least samples of each client; the draw is repeated until all have as many.
    """

    alpha: float = 0.1
    balanced: bool = False
    min_samples: int = 1

    def __post_init__(self):
        require_kinds(self)
        if not self.alpha > 0:
            raise ConfigError(f"alpha must be positive, not {self.alpha}.")
        if self.min_samples < 0:
            raise ConfigError(f"min_samples must be at least 0, not {self.min_samples}.")

    def __call__(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws the owner of each sample, int [N].

        Raises:
          ConfigError: no draw gives every client `min_samples`.
        """
        draw = self._balanced if self.balanced else self._plain
        for _ in range(_MOST_DRAWS):
            owner = draw(labels, num_clients, num_classes, rng)
            if np.bincount(owner, minlength=num_clients).min() >= self.min_samples:
                return owner
        raise ConfigError(
            f"{_MOST_DRAWS:,} Dirichlet draws with alpha {self.alpha} left a client with fewer than "
            f"{self.min_samples} of {len(labels)} samples; raise alpha, or take fewer clients or a "
            "smaller min_samples."
        )

    def _plain(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        owner = np.empty(len(labels), int)
        for label in range(num_classes):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(num_clients, self.alpha))
            owner[rows] = _dealt(len(rows), shares)
        return owner

    def _balanced(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        starts = np.arange(0, num_clients, _LARGEST_GROUP)
        members = np.minimum(num_clients - starts, _LARGEST_GROUP)
        groups = np.split(rng.permutation(len(labels)), starts[1:] * len(labels) // num_clients)
        lists: list[np.ndarray] = []
        for rows, count in zip(groups, members, strict=True):
            lists += self._group(rows, labels, int(count), num_classes, rng)
        owner = np.empty(len(labels), int)
        for client, rows in enumerate(np.array_split(np.concatenate(lists), num_clients)):
            owner[rows] = client
        return owner

    def _group(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> list[np.ndarray]:
        fair = len(rows) / num_clients
        for _ in range(_MOST_DRAWS):
            parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
            sizes = np.zeros(num_clients)
            for label in range(num_classes):
                own = rng.permutation(rows[labels[rows] == label])
                shares = rng.dirichlet(np.full(num_clients, self.alpha)) * (sizes < fair)
                if shares.sum() == 0:  # underflow at tiny α: the smallest client takes all
                    shares = (np.arange(num_clients) == sizes.argmin()).astype(float)
                # Rounded down as by the CCL authors: if one client's share is nearly 1, the last
                # client still gets a sample.
                to = _dealt(len(own), shares / shares.sum(), to_whole=np.floor)
                for client in range(num_clients):
                    parts[client].append(own[to == client])
                sizes += np.bincount(to, minlength=num_clients)
            if sizes.min() >= fair / 2:
                return [np.concatenate(part) for part in parts]
        raise ConfigError(
            f"{_MOST_DRAWS:,} Dirichlet draws with alpha {self.alpha} left a client with less than "
            "half its share; raise alpha, or use balanced=False."
        )


@dataclasses.dataclass(frozen=True)
class Shards:
    """Sorts samples by label and deals equal shards, a few for each client (FedAvg's split).

    Attributes:
      shards_per_client: the shards of a client, which is about the number of its classes.
    """

    shards_per_client: int = 2

    def __post_init__(self):
        require_kinds(self)
        if self.shards_per_client < 1:
            raise ConfigError(
                f"shards_per_client must be at least 1, not {self.shards_per_client}."
            )

    def __call__(
        self, labels: np.ndarray, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws the owner of each sample, int [N].

        Raises:
          ConfigError: more shards than samples.
        """
        num_shards = num_clients * int(self.shards_per_client)  # a NumPy integer might overflow
        if num_shards > len(labels):
            raise ConfigError(
                f"{num_shards} shards need as many samples, but there are {len(labels)}; lower "
                "shards_per_client or the number of clients."
            )
        by_label = np.lexsort((rng.random(len(labels)), labels))
        owners = rng.permutation(np.arange(num_shards) % num_clients)
        owner = np.empty(len(labels), int)
        for client, rows in zip(owners, np.array_split(by_label, num_shards), strict=True):
            owner[rows] = client
        return owner


_MOST_DRAWS = 1000
_LARGEST_GROUP = 10


def _dealt(
    count: int, shares: np.ndarray, to_whole: Callable[[np.ndarray], np.ndarray] = np.round
) -> np.ndarray:
    """Deals `count` samples in order by shares [K]; returns each sample's client, int [count]."""
    bounds = to_whole(np.cumsum(shares) * count)
    bounds[-1] = count
    return np.searchsorted(bounds, np.arange(count), side="right")


# The names for users, as in mhd.partition.primary_labels(labels_per_client=2, skew=100.0).
primary_labels = PrimaryLabels
iid = IID
dirichlet = Dirichlet
shards = Shards
PARTITIONS: dict[str, type] = {
    "primary_labels": PrimaryLabels,
    "dirichlet": Dirichlet,
    "iid": IID,
    "shards": Shards,
}


def named(name: str) -> Partition | pathlib.Path:
    """Returns the partition of that name with its defaults, or the path of an assignment file.

    Raises:
      ConfigError: the name is neither.
    """
    if name in PARTITIONS:
        return PARTITIONS[name]()
    path = expanded(name)
    if path.suffix or os.path.isfile(path):
        return path
    raise ConfigError(
        f"unknown partition {name!r}; choose one of {', '.join(PARTITIONS)}, or give the path of an "
        "assignment (a run's split.npz, or owners as .npy or .csv)."
    )
