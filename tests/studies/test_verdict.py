"""What a comparison says: who is ahead, who ties, by which head, at what cost."""

import types

import numpy as np
import pytest
import scipy.stats

from mhd_jax.studies import verdict

HIGH, LOW = [0.61, 0.66, 0.59, 0.70], [0.52, 0.55, 0.53, 0.58]
NEAR = [0.62, 0.60, 0.64, 0.68]  # with HIGH it ties


def made(sent=None, **rows):
    """Summaries of rows, whose last head has these values of β_sh and whose main head 1 − them."""
    return {
        name: {
            seed: {
                "beta_sh": {"main": 0.1, "aux_1": value},
                "beta_priv": {"main": 1 - value, "aux_1": 0.05},
                "communication": {"total_bytes": (sent or {}).get(name, 0)},
            }
            for seed, value in enumerate(values)
        }
        for name, values in rows.items()
    }


def test_a_tie_is_called_one_and_a_difference_has_its_interval():
    said, *_ = verdict.in_words(made(high=HIGH, near=NEAR, low=LOW))
    mean = np.mean(HIGH)
    assert said.startswith(f"β_sh of the last head is highest for high (aux_1), {mean:.3f}: ")
    ahead, tie = said.split("; ")
    gap = np.subtract(HIGH, LOW)
    low, high = scipy.stats.ttest_1samp(gap, 0).confidence_interval(0.95)
    assert f"it is ahead of low ({gap.mean():+.3f} [{low:+.3f}, {high:+.3f}])" in ahead
    assert "it ties with near" in tie and "near" not in ahead and "low" not in tie


def test_each_metric_is_judged_by_its_declared_head_and_better_ones_are_told():
    summaries = made(high=HIGH, low=LOW)
    _, priv = verdict.in_words(summaries)
    assert priv.startswith("β_priv of the main head is highest for low (main)")
    for summary in summaries["high"].values():
        summary["beta_priv"]["aux_1"] = 0.5
    told = verdict.in_words(summaries)[-1]
    assert told == "Another head than the declared one has more β_priv: high's aux_1, 0.500."


def test_bytes_are_told_where_both_send():
    said, _ = verdict.in_words(made({"high": 940, "low": 100}, high=HIGH, low=LOW, alone=LOW))
    assert said.count("times the bytes") == 1 and "], at 9.4 times the bytes), alone" in said


def test_two_seeds_say_nothing():
    summaries = made(high=HIGH[:2], low=LOW[:2])
    said, _ = verdict.in_words(summaries)
    assert "ahead" not in said and "fewer than 3 seeds in common nothing can be said" in said
    assert verdict.differences(summaries)["beta_sh"] == {"high": [], "low": []}
    assert verdict.in_words(made(high=HIGH)) == []


def test_every_row_may_be_the_baseline():
    found = verdict.differences(made(high=HIGH, near=NEAR, low=LOW))["beta_sh"]
    assert {name: [d.first for d in each] for name, each in found.items()} == {
        "high": ["near", "low"],
        "near": ["high", "low"],
        "low": ["high", "near"],
    }
    there, back = found["low"][0], found["high"][1]
    assert back.mean == pytest.approx(-there.mean) and back.verdict == "behind"
    many = made(**{f"row_{i}": HIGH for i in range(9)})
    assert list(verdict.differences(many)["beta_sh"]) == ["row_0"]


def test_a_row_may_have_the_highest_mean_and_be_behind_on_the_seeds_in_common():
    summaries = made(high=[*LOW, 0.99, 0.99], low=HIGH)
    said, _ = verdict.in_words(summaries)
    gap = np.mean(np.subtract(LOW, HIGH))
    assert f"on the seeds in common it is behind low ({gap:+.3f}".replace("-", "−") in said


def test_rows_with_adversaries_are_judged_by_honest_clients():
    runs = {
        name: [
            types.SimpleNamespace(
                summary={
                    "seed": seed,
                    "settings": {"clients": {}},
                    "communication": {"total_bytes": 0},
                    **{m: {"main": 0.9 - value} for m in ("beta_sh", "beta_priv")},
                    "honest": {m: {"main": value} for m in ("beta_sh", "beta_priv")},
                }
            )
            for seed, value in enumerate(values)
        ]
        for name, values in {"high": HIGH, "low": LOW}.items()
    }
    said, _ = verdict.in_words(verdict.by_seed(runs))
    assert said.startswith("β_sh of the last head, of honest clients, is highest for high (main), ")
    assert "it is ahead of low" in said


def test_pairs_are_of_equal_seeds():
    summaries = made(high=HIGH, low=LOW)
    summaries["low"] = dict(reversed(summaries["low"].items()))
    (found,) = verdict.differences(summaries)["beta_sh"]["low"]
    assert found.differences == pytest.approx(np.subtract(HIGH, LOW))
    del summaries["low"][1]
    (found,) = verdict.differences(summaries)["beta_sh"]["low"]
    assert found.seeds == (0, 2, 3)
