"""How the benchmark makes one number of times that a busy machine disturbs."""

import threading

import numpy as np
import pytest

from experiments.timing import Processors, Ratio, Times, disturbed, in_turn


def test_both_sides_are_taken_in_turn():
    called = []
    times = in_turn(lambda: called.append("a"), lambda: called.append("b"), repetitions=3)
    assert called == ["a", "b"] + ["a", "b"] * 3  # the first pair warms up
    assert times.clock.shape == times.processors.shape == (3, 2)


def test_what_hits_both_sides_of_a_pair_leaves_its_ratio():
    drift = np.array([1.0, 3.0, 1.0, 7.0, 2.0])
    ratio = Ratio.of(2 * drift, drift)
    assert ratio == Ratio(2.0, (2.0, 2.0))
    one_hit = Ratio.of(np.array([2.0, 2, 2, 2, 50]), np.ones(5))
    assert one_hit.value == 2.0


def test_processors_of_all_threads_count_and_those_of_others_do_not():
    def busy():
        end = threading.Event()

        def work():
            while not end.is_set():
                sum(range(1000))

        other = threading.Thread(target=work)
        other.start()
        for _ in range(2000):
            sum(range(1000))
        end.set()
        other.join()

    times = in_turn(busy, lambda: threading.Event().wait(0.05), repetitions=1)
    computing, waiting = times.cores()
    assert computing > 10 * waiting


@pytest.mark.parametrize(
    ("after", "others"),
    [
        (Processors(all=200, idle=40, own=160), 0.0),
        (Processors(all=200, idle=0, own=150), 0.25),  # another process, or a hypervisor's steal
        (Processors(all=200, idle=200, own=0), 0.0),
        (Processors(all=200, idle=0, own=210), 0.0),  # clocks of unlike steps
        (Processors(all=0, idle=0, own=0), 0.0),  # no time has passed
    ],
)
def test_the_share_that_others_had(after, others):
    assert after.others_since(Processors(0, 0, 0)) == others


@pytest.mark.parametrize(
    ("spread", "others", "expected"),
    [
        ((0.95, 1.05), 0.02, False),
        ((0.95, 1.05), 0.3, True),
        ((0.8, 1.1), 0.02, True),
        (None, 0.02, False),
    ],
)
def test_what_was_disturbed_is_told(spread, others, expected):
    ratio = None if spread is None else Ratio(1.0, spread)
    assert disturbed(ratio, others) == expected


def test_medians_are_those_of_each_call():
    clock = np.array([[1.0, 10.0], [3.0, 20.0], [2.0, 90.0]])
    assert Times(clock, 2 * clock).medians() == [2.0, 20.0]
    assert Times(clock, 2 * clock).cores() == [2.0, 2.0]
    assert Times(clock, 2 * clock).ratio(1, 0).value == 10.0
