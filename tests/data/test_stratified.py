"""The stratified test split and the digits are scikit-learn's."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mhd_jax as mhd
from mhd_jax.data.stratified import stratified_split


@pytest.mark.parametrize("seed", range(40))
def test_the_split_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(1, 12)
    counts = rng.integers(2, rng.choice([4, 50]), classes)  # small numbers tie
    labels = rng.permutation(np.repeat(np.arange(classes) * 3, counts))
    fraction = rng.choice([0.1, 0.2, 0.25, 0.5, rng.uniform(0.05, 0.95)])

    def theirs():
        rows = np.arange(len(labels))
        return train_test_split(rows, test_size=fraction, stratify=labels, random_state=seed)

    try:
        expected = theirs()
    except ValueError:
        with pytest.raises(ValueError, match="samples cannot hold each of"):
            stratified_split(labels, fraction, seed)
        return
    for found, rows in zip(stratified_split(labels, fraction, seed), expected, strict=True):
        np.testing.assert_array_equal(found, rows)


def test_digits_are_scikit_learns():
    theirs, data = load_digits(), mhd.data.load("digits")
    train, test = train_test_split(
        np.arange(1797), test_size=0.2, stratify=theirs.target, random_state=0
    )
    for images, labels, rows in (
        (data.inputs, data.labels, train),
        (data.test_inputs, data.test_labels, test),
    ):
        np.testing.assert_array_equal(images[..., 0], (theirs.images[rows] / 16).astype(np.float32))
        np.testing.assert_array_equal(labels, theirs.target[rows])
