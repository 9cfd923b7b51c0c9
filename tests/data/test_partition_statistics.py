"""What is said about a partition, against SciPy and numbers by hand."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from mhd_jax.data import partition_statistics
from mhd_jax.runs import figures

BY_HAND = np.array([[4, 4, 0], [0, 0, 2], [1, 2, 1]])


def test_by_hand():
    found = partition_statistics.describe(BY_HAND)
    assert found["imbalance"] == 4.0
    # Between 0 and 1: 1; 0 and 2: ½ (¼ + 0 + ¼); 1 and 2: ½ (¼ + ½ + ¾).
    assert found["mean_total_variation"] == pytest.approx((1 + 0.25 + 0.75) / 3)
    assert [client["entropy_bits"] for client in found["clients"]] == pytest.approx([1, 0, 1.5])
    assert found["clients"][2] == {
        "client": 2,
        "samples": 4,
        "classes": 3,
        "entropy_bits": 1.5,
        "largest_class": 1,
        "largest_share": 0.5,
        "counts": [1, 2, 1],
    }


@pytest.mark.parametrize(("num_clients", "num_classes"), [(2, 2), (7, 10), (40, 3)])
def test_against_scipy(num_clients, num_classes):
    rng = np.random.default_rng(num_clients)
    counts = rng.integers(0, 6, (num_clients, num_classes)) ** 2
    counts[:, 0] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        partition_statistics.label_entropy(counts),
        stats.entropy(shares, base=2, axis=1),
        atol=1e-12,
    )
    expected = distance.pdist(shares, "cityblock").mean() / 2
    assert partition_statistics.mean_total_variation(counts) == pytest.approx(expected)


def test_extremes():
    assert partition_statistics.mean_total_variation(np.array([[3, 5]])) == 0  # one client
    assert partition_statistics.mean_total_variation(np.eye(4, dtype=int)) == pytest.approx(1)
    assert partition_statistics.mean_total_variation(np.array([[1, 2], [2, 4]])) == pytest.approx(0)
    np.testing.assert_allclose(partition_statistics.label_entropy(np.full((2, 8), 5)), 3)
    assert not np.signbit(partition_statistics.label_entropy(np.eye(2, dtype=int))).any()


@pytest.mark.parametrize("shape", [(1, 2), (3, 3), (100, 100), (2, 1000), (300, 10)])
@pytest.mark.filterwarnings("error")
def test_the_plot_shows_counts_and_sizes(shape):
    counts = np.random.default_rng(0).integers(0, 50, shape)
    names = [f"a class of long name {i}" for i in range(shape[1])]
    figure = figures.data_split(counts, names)
    figure.draw_without_rendering()  # a layout that finds no room warns
    heat_map, sizes = figure.axes[:2]
    np.testing.assert_array_equal(heat_map.images[0].get_array(), counts)
    np.testing.assert_array_equal(sizes.patches[0].get_data().values, counts.sum(axis=1))
    if counts.size <= 9:
        assert [text.get_text() for text in heat_map.texts] == list(map(str, counts.ravel()))
