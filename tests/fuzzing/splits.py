"""Who gets which sample: rules with any numbers, and files."""

import math
import numbers
import pathlib

import numpy as np
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax.core.digests import array_digest
from mhd_jax.data import split_files
from mhd_jax.data.split import SetAside, Split, dealt
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
            split = split_files.load(path, labels, k, SetAside(0.0, 0.0, 0))
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


@st.composite
def given_owners(draw):
    """Owners [N] of 40 samples, mostly sound, and a form in which they are given."""
    k = draw(st.integers(1, 4))
    owner = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.resize(range(-1, k), 40))
    if draw(one_in(5)):
        owner[draw(st.integers(0, 39))] = draw(st.sampled_from([-2, k, k + 1, 2**40]))
    if draw(one_in(6)):
        owner = owner[: draw(st.sampled_from([0, 1, 39]))]
    form = draw(st.sampled_from(["array", "list", "rows", "list of rows", "function"]))
    dtype = draw(st.sampled_from(["i8"] * 6 + ["i2", "u8", "f8", "U3", "O", "c8", "?"]))
    spoilt = draw(st.sampled_from([None] * 6 + ["twice", "beyond", "nested", "text", "few", "odd"]))
    return k, owner, form, dtype, spoilt, draw(odd_values)


@kind(given_owners(), examples=40)
def partitions_given(case):
    k, owner, form, dtype, spoilt, odd = case
    data = mhd.data.arrays(np.ones((50, 2)), np.arange(50) % 2)
    with np.errstate(all="ignore"):
        values = owner.astype(dtype)
    given = values if form == "array" else values.tolist()
    if dtype[0] in "iu" and "rows" not in form:
        owner = values  # which may have run over
    if "rows" in form:
        rows = {client: np.flatnonzero(owner == client).tolist() for client in range(k)}
        broken = {"twice": [1, 1], "beyond": [40], "nested": [[1]], "text": "ab", "odd": odd}
        if spoilt in broken:
            rows[0] = broken[spoilt]
        elif spoilt == "few":
            del rows[k - 1]
        given = rows if form == "rows" else list(rows.values())
    elif spoilt == "odd":
        given = odd
    if form == "function":
        returned, given = given, lambda labels, k, c, rng: returned
        if spoilt == "few":
            given = lambda labels: returned
    options = {"model": "mlp_small", "public_fraction": 0.0}
    clients, why = attempt(lambda: mhd.make_clients(data, k, partition=given, **options))
    exact = len(owner) == 40 and {*owner} - {-1} == {*range(k)}
    if "rows" in form:
        own = {row for row in range(len(owner)) if 0 <= owner[row] < k}
        exact = {*range(k)} <= {*owner} and len(own) > 0 and spoilt is None
    elif form == "function":
        exact = len(owner) == 40 and {*range(k)} <= {*owner} <= {*range(-1, k)} and spoilt != "few"
    if dtype[0] not in "iu" and "rows" not in form:
        exact = False
    if spoilt == "odd" or (dtype in ("O", "?") and "rows" not in form):  # as NumPy reads a list
        return why is None
    assert (why is None) == exact, (case, why)
    if why is None:
        expected = np.full(40, -1)
        kept = (owner >= 0) & (owner < k)
        expected[: len(owner)][kept] = owner[kept]
        np.testing.assert_array_equal(clients.owner, expected)
        assert clients.settings["partition"] == ("custom" if form == "function" else "given")
    return why is None
