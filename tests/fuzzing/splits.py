"""Who gets which sample: rules with any numbers, and files."""

import math
import numbers
import pathlib

import numpy as np
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax.data import assignment
from mhd_jax.data.split import SetAside, Split, dealt
from mhd_jax.fingerprint import array_digest
from tests.fuzzing.kinds import Trap, attempt, damages, kind, odd_values, one_in, scratch


def number(value) -> bool:
    """Whether it is one, infinity included."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    too_large = isinstance(value, int) and abs(value) >= 2**1024
    return real and value == value and not too_large


def finite(value) -> bool:
    return number(value) and abs(value) != math.inf


def integer(value) -> bool:
    """Whether it is one that a device counts with."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and abs(int(value)) < 2**31


def truth(value) -> bool:
    return isinstance(value, bool | np.bool_)


RULES = {
    "primary_labels": {
        "labels_per_client": lambda v: integer(v) and v >= 1,
        "skew": lambda v: number(v) and v >= 0,
        "assignment": lambda v: isinstance(v, str) and v in ("balanced", "random"),
    },
    "dirichlet": {
        "alpha": lambda v: finite(v) and v > 0,
        "balanced": truth,
        "min_samples": lambda v: integer(v) and v >= 0,
    },
    "iid": {},
    "shards": {"shards_per_client": lambda v: integer(v) and v >= 1},
}
LIKELY = {
    "labels_per_client": st.integers(1, 4),
    "skew": st.sampled_from([0, 0.5, 100.0, 1e300, 1.7e308, math.inf]),
    "assignment": st.sampled_from(["balanced", "random"]),
    "alpha": st.sampled_from([1e-300, 1e-3, 0.1, 1, 100.0, 1e300]),
    "balanced": st.booleans(),
    "min_samples": st.integers(0, 3),
    "shards_per_client": st.integers(1, 5),
}
fractions = st.one_of(st.sampled_from([0, 0.0, 0.1, 0.3, 0.5, 0.9]), st.floats(0, 1.2), odd_values)


@st.composite
def deals(draw):
    """A rule's name, what it is given, labels, K, C, and the shares set aside with a seed."""
    name = draw(st.sampled_from(list(RULES)))
    odd = draw(one_in(4))
    given = {
        field: draw(odd_values if odd and draw(st.booleans()) else LIKELY[field])
        for field in RULES[name]
        if draw(st.booleans())
    }
    classes = draw(st.sampled_from([2, 3, 10]))
    samples = draw(st.sampled_from([2, 5, 40, 300]))
    labels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, classes, samples)
    plain = not draw(one_in(4))
    shares = (0.1, 0.0) if plain else (draw(fractions), draw(fractions))
    seed = draw(st.integers(0, 2**32 - 1) if plain else odd_values)
    return name, given, labels, draw(st.sampled_from([1, 2, 5, 25, 200])), classes, (*shares, seed)


@kind(deals())
def partitions(case):
    name, given, labels, k, classes, aside = case
    *shares, seed = aside
    sound = all(RULES[name][field](value) for field, value in given.items())
    can = all(finite(share) and share >= 0 for share in shares) and sum(shares) < 1
    can &= isinstance(seed, numbers.Integral) and not truth(seed) and 0 <= int(seed) < 2**32
    rule, why = attempt(lambda: mhd.partition.PARTITIONS[name](**given))
    assert (why is None) == sound, (given, why)
    set_aside, why = attempt(lambda: SetAside(*aside))
    assert (why is None) == bool(can), (aside, why)
    if not sound or not can:
        return False
    split, why = attempt(lambda: dealt(rule, labels, k, classes, set_aside))
    if why:
        private = len(labels) - sum(set_aside.sizes(len(labels)))
        reasons = {
            "primary_labels": given.get("labels_per_client", 2) > classes,
            "dirichlet": True,  # chance
            "shards": int(given.get("shards_per_client", 2)) * k > private,
        }
        assert reasons[name], (case, why)
        return False
    split.require_exact(k, "the rule")
    roles = np.zeros(len(labels), int)
    roles[split.public] += 1
    roles[split.validation] += 1
    roles += split.owner >= 0
    assert (roles == 1).all() and split.owner.max(initial=-1) < k
    again = dealt(rule, labels, k, classes, set_aside)
    np.testing.assert_array_equal(split.owner, again.owner)
    np.testing.assert_array_equal(split.public, again.public)
    held = np.bincount(split.owner[split.owner >= 0], minlength=k)
    if name == "iid" or (name == "dirichlet" and given.get("balanced")):
        assert held.max() - held.min() <= 1
    if name == "dirichlet":
        assert held.min() >= given.get("min_samples", 1)
    if name == "primary_labels" and given.get("skew", 100.0) > 1e20 and held.sum() > 20:
        rng = np.random.default_rng([seed, 1])
        primary = rule.primary_labels(k, classes, rng)
        owned = labels[split.owner >= 0]
        theirs = primary[split.owner[split.owner >= 0], owned]
        assert (theirs | ~primary.any(axis=0)[owned]).all()
    return True


@st.composite
def owner_files(draw):
    """A kind of file, labels, owners, public rows, K as said, and how the file is damaged."""
    samples = draw(st.sampled_from([1, 6, 12]))
    k = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    owner = rng.permutation(np.resize(np.arange(-1, k), samples))
    if draw(one_in(6)):
        owner[draw(st.integers(0, samples - 1))] = draw(st.sampled_from([-2, k, 2**40]))
    public = np.flatnonzero(owner == -1)[: draw(st.integers(0, 2))]
    if draw(one_in(6)):
        public = np.array(draw(st.lists(st.integers(-2, samples + 1), max_size=3)), int)
    ending = draw(st.sampled_from([".csv", ".npy", ".npz"]))
    dtype = draw(st.sampled_from(["i8"] * 8 + ["i4", "f8", "O", "c8", "U2"]))
    return samples, k, owner, public, ending, dtype, draw(damages())


@kind(owner_files())
def assignment_files(case):
    samples, k, owner, public, ending, dtype, damage = case
    labels = np.arange(samples) % 2
    with scratch():
        path = pathlib.Path("split" + ending)
        stored = np.array([Trap()] * samples) if dtype == "O" else owner.astype(dtype)
        if ending == ".csv":
            dtype = "i8"
            path.write_text("".join(f"{n}\n" for n in owner))
        elif ending == ".npy":
            np.save(path, stored)
        else:
            none = np.zeros(0, int)
            digest = array_digest(labels)
            np.savez(path, owner=stored, public=public, validation=none, labels_digest=digest)
        before = path.read_bytes()
        path.write_bytes(damage(before))
        whole = path.read_bytes() == before

        def load() -> Split:
            split = assignment.load(path, labels, k, SetAside(0.0, 0.0, 0))
            split.require_exact(k, "it")
            return split

        split, why = attempt(load)
    assert Trap.sprung == 0
    if whole:
        exact = set(owner) - {-1} == set(range(k)) and dtype[0] == "i"
        if ending == ".npz":
            exact &= len({*public}) == len(public) and all(
                0 <= row < samples and owner[row] == -1 for row in public
            )
        if not (dtype == "i4" and abs(owner).max() > 2**31):
            assert (why is None) == exact, (case, why)
            if exact:
                np.testing.assert_array_equal(split.owner, owner)
    return why is None
