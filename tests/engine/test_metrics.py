"""The library's metrics against independent references."""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest
import sklearn.metrics

import mhd_jax as mhd
from mhd_jax.core.label_sets import IMPOSSIBLE
from mhd_jax.core.tasks import CLASSES
from mhd_jax.engine import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(200, 7)).astype(np.float32) * 2
LABELS = RNG.integers(0, 7, 200)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def test_negative_log_likelihood():
    expected = sklearn.metrics.log_loss(LABELS, PROBABILITIES, labels=range(7))
    assert metrics.negative_log_likelihood(LOGITS, LABELS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_expected_calibration_error(bins):
    confidence, guess = PROBABILITIES.max(axis=1), PROBABILITIES.argmax(axis=1)
    expected = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs((guess == LABELS)[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    found = metrics.expected_calibration_error(LOGITS, LABELS, bins)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_class_outside_of_a_label_set_has_no_probability():
    logits = np.where(np.arange(7) < 3, LOGITS, IMPOSSIBLE).astype(np.float32)
    own = metrics.OwnMetrics.checked(["negative_log_likelihood", "expected_calibration_error"])
    with pytest.warns(UserWarning, match="negative_log_likelihood is infinite"):
        found = own.of(logits[None, :, None], LABELS, np.zeros((1, 1)))
    assert np.isnan(found["negative_log_likelihood"]).all()
    assert 0 < found["expected_calibration_error"] < 1
    known = LABELS < 3
    found = own.of(logits[None, known, None], LABELS[known], np.zeros((1, 1)))
    expected = metrics.negative_log_likelihood(LOGITS[known, :3], LABELS[known])
    assert found["negative_log_likelihood"] == pytest.approx(expected, rel=1e-5)


def test_macro_f1():
    guess = LOGITS.argmax(axis=1)
    scores = []
    for c in range(7):
        both = ((guess == c) & (c == LABELS)).sum()
        scores.append(2 * both / ((guess == c).sum() + (c == LABELS).sum()))
    assert metrics.macro_f1(LOGITS, LABELS) == pytest.approx(np.mean(scores))


def test_an_ensemble_of_a_client_and_its_neighbours():
    everyone = RNG.normal(size=(3, 200, 7)).astype(np.float32)
    graph = np.array([[0, 0, 2.0], [1, 0, 1], [0, 0, 0]])
    each = np.exp(everyone) / np.exp(everyone).sum(axis=-1, keepdims=True)
    expected = ((each[0] + each[2]).argmax(axis=1) == LABELS).mean()
    found = metrics.ensemble_accuracy(everyone[0], LABELS, 0, everyone, graph)
    assert found == expected
    alone = (everyone[2].argmax(axis=1) == LABELS).mean()
    assert metrics.ensemble_accuracy(everyone[2], LABELS, 2, everyone, graph) == alone


def _summary(values):
    per_client = [{m: {"main": v} for m in ("beta_sh", "beta_priv")} for v in values]
    mean = {"main": float(np.nanmean(np.array(values, float)))}
    return {"beta_sh": mean, "beta_priv": mean, "per_client": per_client}


def test_fairness_of_a_summary():
    values = [0.9, 0.1, 0.5, None, *[0.7] * 17]
    found = metrics.fairness(_summary(values))["beta_priv"]["main"]
    known = np.array([v for v in values if v is not None])
    assert found == {"worst": 0.1, "lowest_tenth": pytest.approx(0.3), "std": known.std()}


def test_who_is_worse_off_than_alone_is_known_of_some_alone():
    result, alone = (
        types.SimpleNamespace(summary=_summary(values))
        for values in ([0.5, 0.9, None, 0.1], [0.8, 0.8, 0.8, None])
    )
    assert metrics.share_below(result, alone) == 0.5


def test_the_librarys_metrics_may_be_given_by_name():
    (function, asked) = metrics.OwnMetrics.checked(["macro_f1"]).functions["macro_f1"]
    assert function is metrics.macro_f1 and asked == ()
    with pytest.raises(mhd.ConfigError, match="there is no metric f9; choose among"):
        metrics.OwnMetrics.checked(["f9"])


def test_what_is_infinite_is_unknown():
    own = {"mine": lambda logits, labels, client: -np.inf if client else 2.0}
    with pytest.warns(UserWarning, match="the metric mine is infinite"):
        found = metrics.OwnMetrics.checked(own).of(np.zeros((2, 3, 1, 2)), np.zeros(3, int), None)
    np.testing.assert_array_equal(found["mine"], [[2.0], [np.nan]])


@pytest.mark.parametrize(
    "given, says",
    [
        ({"beta_sh": metrics.macro_f1}, "not taken, not 'beta_sh'"),
        ({"a b": metrics.macro_f1}, "not taken, not 'a b'"),
        ({"f": 3}, r"the metric f must be a function \(logits, labels\)"),
        (metrics.macro_f1, "metrics are functions by name"),
    ],
)
def test_what_is_no_metric(given, says):
    with pytest.raises(mhd.ConfigError, match=says):
        metrics.OwnMetrics.checked(given)


@pytest.mark.parametrize(
    "function, says",
    [
        (lambda logits, labels: logits, "must be a number"),
        (lambda logits, labels: "much", "must be a number"),
        (lambda logits: 1.0, "failed"),
        (lambda logits, labels: 1 / 0, "failed .ZeroDivisionError"),
    ],
)
def test_a_metric_that_fails_is_named(function, says):
    own = metrics.OwnMetrics.checked({"mine": function})
    with pytest.raises(mhd.ConfigError, match=f"the metric mine of client 0, head main, {says}"):
        own.try_out(2, CLASSES, 3)
