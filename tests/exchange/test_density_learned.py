"""What density outputs learn, where the true ratio is known: Gaussian classes; and how it is measured."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

import mhd_jax as mhd
from mhd_jax.engine import densities
from mhd_jax.training import groups

MEANS = np.array([-1.5, 0.0, 1.5])
PRIORS = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])  # of clients on a chain
NUM_PUBLIC, NUM_PRIVATE = 6000, 4000


class Bumps(nn.Module):
    """Fixed features in which logarithms of ratios of these mixtures are nearly linear."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        self.param("unused", nn.initializers.zeros, ())
        grid = jnp.linspace(-4, 4, 17)
        return jnp.exp(-((x - grid) ** 2) / 0.5)


def mixture_density(priors, x):
    return scipy.stats.norm.pdf(x[:, None], MEANS) @ priors


@pytest.fixture(scope="module")
def learned():
    """A run on a chain of three clients whose public set is their equal mixture."""
    rng = np.random.default_rng(0)

    def drawn(priors, count):
        labels = rng.choice(3, count, p=priors)
        return rng.normal(MEANS[labels]).astype(np.float32)[:, None], labels

    inputs, labels = (
        np.concatenate(arrays)
        for arrays in zip(*(drawn(p, NUM_PRIVATE) for p in PRIORS), strict=True)
    )
    alike = np.full(3, 1 / 3)
    clients = mhd.make_clients(
        mhd.data.arrays(inputs, labels, *drawn(alike, 300)),
        3,
        Bumps(),
        partition=np.repeat(np.arange(3), NUM_PRIVATE),
        public=mhd.data.arrays(*drawn(alike, NUM_PUBLIC), test_fraction=0.1),
    )
    clients = clients.with_defaults(optax.adam(optax.cosine_decay_schedule(0.03, 1500)))
    algorithm = mhd.algorithms.mhd(
        num_aux_heads=1, target_selection="density_ratio", num_targets="all", nu_emb=0.0
    )
    return mhd.simulate(
        "chain",
        clients,
        algorithm,
        steps=1500,
        batch_size=256,
        public_batch_size=256,
        eval_every=1500,
        progress=False,
    )


@pytest.mark.slow
def test_density_outputs_learn_the_ratios(learned):
    """Within 0.1 in the mean over fresh samples: of a client's mixture, and of its neighbours'."""
    x = np.random.default_rng(1).normal(np.repeat(MEANS, 300)).astype(np.float32)
    public = mixture_density(np.full(3, 1 / 3), x)
    found = np.asarray(groups.predict_density(learned.state, x[:, None]))
    for i in range(3):
        own = np.log(mixture_density(PRIORS[i], x) / public)
        assert np.abs(found[i, :, 0] - own).mean() < 0.1
        near = PRIORS[max(i - 1, 0) : i + 2].mean(axis=0)
        mixture = np.log(mixture_density(near, x) / public)
        assert np.abs(found[i, :, 1] - mixture).mean() < 0.1


def test_what_is_measured_of_densities():
    """Against scikit-learn's weighted AUROC, and by hand."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    density = rng.normal(size=(2, 60, 2)).round(1)  # with ties
    private = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    public = np.array([0.25, 0.25, 0.5])
    found = densities.summarized(density, labels, private, public)
    by_class = [[density[i, labels == c, 1].mean() for c in range(3)] for i in range(2)]
    np.testing.assert_allclose(found["by_class"]["aux_1"], by_class)
    np.testing.assert_allclose(found["log_ratio"][0], [np.log(2), np.log(2), np.nan])
    count = np.bincount(labels)
    own, there = (private[0] / count)[labels], (public / count)[labels]
    expected = roc_auc_score(
        np.repeat([1, 0], 60), np.tile(density[0, :, 0], 2), sample_weight=np.append(own, there)
    )
    assert found["auroc"]["main"] == pytest.approx(expected)
    assert found["auroc"]["best"] == pytest.approx(0.5 + 0.25)  # half of public samples are below
    implied = public * [np.exp(density[0, labels == c, 0]).mean() for c in range(3)]
    distance = np.abs(implied / implied.sum() - private[0]).sum() / 2
    assert found["total_variation"]["main"] == pytest.approx(distance)
    assert found["total_variation"]["public"] == pytest.approx(0.5)
    assert densities.summarized(density, labels, private, None).keys() == {"by_class"}


@pytest.mark.slow
def test_a_run_says_who_is_fit_to_teach_which_class(tmp_path):
    data = mhd.data.load("digits")
    two = mhd.partition.primary_labels(2, skew=np.inf)
    clients = mhd.make_clients(data, 5, "mlp_small", partition=two, public_fraction=0.2)
    algorithm = mhd.algorithms.mhd(num_aux_heads=1, target_selection="density_ratio")
    sizes = {"steps": 150, "eval_every": 150, "progress": False}
    found = mhd.simulate("ring", clients, algorithm, workdir=tmp_path, **sizes).summary["density"]
    held = np.array(clients.label_counts()) > 0
    main = np.array(found["by_class"]["main"])
    assert main[held].min() > main[~held].max() - 1 and main[held].mean() > main[~held].mean() + 1
    assert 0.75 < found["auroc"]["main"] <= found["auroc"]["best"] + 0.02
    assert found["total_variation"]["main"] < found["total_variation"]["public"] - 0.2
    assert (tmp_path / "density.png").exists()
    assert "Who is fit to teach which class" in (tmp_path / "report.html").read_text()
