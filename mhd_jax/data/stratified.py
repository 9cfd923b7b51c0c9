"""A stratified test split: scikit-learn's, drawn without an import that takes over a second."""

from __future__ import annotations

import math

import numpy as np

TEST_FRACTION = 0.2  # by default


def sizes(num_samples: int, test_fraction: float) -> tuple[int, int]:
    """Returns how many training and test samples a split has."""
    num_test = math.ceil(test_fraction * num_samples)
    return num_samples - num_test, num_test


def stratified_split(
    labels: np.ndarray, test_fraction: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns training rows and test rows, in which classes have the shares that they have in all.

    They are those of `sklearn.model_selection.train_test_split` with `stratify=labels` and
    `random_state=seed`.

    Args:
      labels: the class of each sample, [N], with at least two samples of each.
      test_fraction: the share of the samples to set aside, in (0, 1).
      seed: decides which.

    Raises:
      ValueError: one of the two splits is too small to hold each class once.
    """
    _, of_sample, counts = np.unique(labels, return_inverse=True, return_counts=True)
    num_train, num_test = sizes(len(labels), test_fraction)
    for split, size in {"training": num_train, "test": num_test}.items():
        if size < len(counts):
            raise ValueError(f"{size} {split} samples cannot hold each of {len(counts)} classes")
    rng = np.random.RandomState(seed)
    in_train = _shares(counts, num_train, rng)
    in_test = _shares(counts - in_train, num_test, rng)
    rows_by_class = np.split(np.argsort(of_sample, kind="stable"), np.cumsum(counts)[:-1])
    train, test = [], []
    for rows, first, second in zip(rows_by_class, in_train, in_test, strict=True):
        shuffled = rows[rng.permutation(len(rows))]
        train.append(shuffled[:first])
        test.append(shuffled[first : first + second])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def _shares(counts: np.ndarray, total: int, rng: np.random.RandomState) -> np.ndarray:
    """Divides `total` in proportion to `counts` by largest remainders, ties by lot."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, missing = exact - shares, int(total - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        tied = np.flatnonzero(remainders == remainder)
        chosen = rng.choice(tied, size=min(len(tied), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(int)
