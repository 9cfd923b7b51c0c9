"""Kinds of input: how each is made, and what must be true of every one.

A check returns whether its input was taken; anything but a `ConfigError` of one line, or a wrong
result, is a failure. `tests.test_fuzzing` tries a few of each kind, `python -m tests.fuzzing` many.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

import mhd_jax as mhd


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
      inputs: makes them.
      check: (input) -> whether it was taken.
      examples: how many the suite tries.
    """

    inputs: st.SearchStrategy
    check: Callable[[Any], bool]
    examples: int


@dataclasses.dataclass
class Tried:
    """What came of inputs of one kind; `failure` holds the smallest that failed."""

    taken: int = 0
    refused: int = 0
    failure: BaseException | None = None


KINDS: dict[str, Kind] = {}


def kind(inputs: st.SearchStrategy, examples: int = 30):
    """Registers a check under its function's name."""

    def register(check):
        KINDS[check.__name__] = Kind(inputs, check, examples)
        return check

    return register


def explore(kind: Kind, inputs: int, seed: int | None = None, limit: float = 0) -> Tried:
    """Tries inputs of a kind: always the same without a seed; each at most `limit` seconds."""
    tried = Tried()

    @hypothesis.settings(
        max_examples=inputs,
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(kind.inputs)
    def one(case):
        with _within(limit, case):
            taken = kind.check(case)
        tried.taken += taken
        tried.refused += not taken

    run = one if seed is None else hypothesis.seed(seed)(one)
    try:
        run()
    except BaseException as failure:  # hypothesis raises what the check raised, or a group of these
        if isinstance(failure, KeyboardInterrupt):
            raise
        tried.failure = failure
    return tried


class Hangs(BaseException):
    """An input takes too long; no `except Exception` makes a refusal of it."""


@contextlib.contextmanager
def _within(seconds: float, case: Any):
    def stop(signum, frame):
        raise Hangs(f"more than {seconds} s for {case!r:.2000}")

    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refusal(make: Callable[[], Any]) -> str | None:
    """The sentence with which something is refused; None where it is made."""
    return attempt(make)[1]


def attempt(make: Callable[[], Any]) -> tuple[Any, str | None]:
    """What is made and None, or None and the sentence with which it is refused."""
    try:
        return make(), None
    except mhd.ConfigError as error:
        sentence = str(error)
        assert len(sentence) > 10 and "\n" not in sentence, repr(sentence)
        return None, sentence


@contextlib.contextmanager
def scratch():
    """An empty folder, which is the working directory meanwhile."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield pathlib.Path(folder)
        finally:
            os.chdir(before)


class Trap:
    """What a pickle of it does where someone loads it shows in `sprung`."""

    sprung = 0

    def __reduce__(self):
        return _spring, ()


def _spring():
    Trap.sprung += 1
    return 0


def one_in(count: int) -> st.SearchStrategy:
    """True once in so many times."""
    return st.sampled_from([False] * (count - 1) + [True])


@st.composite
def damages(draw) -> Callable[[bytes], bytes]:
    """Ways in which a file goes bad: bytes turned over, cut off, or put in; or none at all."""
    how = draw(st.sampled_from(["none"] * 6 + ["flip", "cut", "insert", "other"]))
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
    other = draw(st.binary(max_size=40))

    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        for place, value in places:
            at = min(int(place * len(changed)), max(len(changed) - 1, 0))
            if how == "flip" and changed:
                changed[at] ^= value
            elif how == "cut":
                del changed[at:]
            elif how == "insert":
                changed[at:at] = bytes([value])
        return other if how == "other" else bytes(changed)

    return damage


ODD_NUMBERS = [0, 1, -1, 2, 3, 0.5, 1.0, 1e-3, 1.5, 100, -0.0, 1e-320, 1e-30, 1e30, 1e300, 2**31]
ODD_NUMBERS += [2**40, 2**70, 10**400, float("nan"), float("inf"), -float("inf"), True, False]
ODD_NUMBERS += [np.int64(3), np.float32(0.5), np.uint8(2), np.bool_(True)]
NOT_NUMBERS = [None, "", "1", "nan", b"1", 1j, [], [1], (0.5,), {}, {0: 1}, print, object()]
odd_values = st.one_of(
    st.sampled_from(ODD_NUMBERS), st.sampled_from(NOT_NUMBERS), st.integers(-3, 300), st.floats()
)
