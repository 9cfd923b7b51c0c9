"""Settings: records of numbers, hyperparameters, texts that say what is whose, command lines."""

import dataclasses
import functools

import numpy as np
from absl import flags
from absl.testing import flagsaver
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.algorithms.fedavg import LOCAL_STEPS
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.commands import train
from mhd_jax.clients import of_each
from mhd_jax.core.label_sets import resolved
from mhd_jax.data.augmentation import parse
from mhd_jax.engine.schedule import Plan
from mhd_jax.exchange.adversaries import KINDS as LIES
from mhd_jax.exchange.adversaries import checked
from mhd_jax.exchange.selection import TARGET_SELECTIONS
from mhd_jax.training.parameter_averaging import mixing_matrix
from tests.builders import tiny_clients
from tests.fuzzing.kinds import NOT_NUMBERS, attempt, kind, odd_values, one_in, scratch
from tests.fuzzing.splits import finite, integer, number, truth


def share(value):
    return finite(value) and 0 <= value < 1


def positive(value):
    return finite(value) and value > 0


def natural(value):
    return finite(value) and value >= 0


def count(value):
    return integer(value) and value >= 1


def whole(value):
    return integer(value) and value >= 0


def among(*names):
    return lambda value: isinstance(value, str) and value in names


def optional(fits):
    return lambda value: value is None or fits(value)


def anything(value):
    return True


# What each setting may be, by the documentation.
RECORDS = {
    mhd.optim.SGD: {
        "learning_rate": positive,
        "momentum": share,
        "nesterov": optional(truth),
        "weight_decay": natural,
        "schedule": among("cosine", "constant", "step", "decreasing"),
        "warmup_steps": whole,
    },
    mhd.Faults: {
        "link_loss": share,
        "offline": share,
        "offline_steps": lambda v: count(v) and v < 2**31 - 1,
        "offline_trains": truth,
        "participation": lambda v: number(v) and 0 < v <= 1,
        "participation_steps": count,
    },
    mhd.data.Augmentation: {
        "resized_crop": optional(lambda v: finite(v) and 0 < v <= 1),
        "crop": optional(whole),
        "flip": truth,
        "cutout": whole,
        "jitter": share,
    },
    mhd.pretext.SimCLR: {"temperature": positive, "width": count},
}
HYPERPARAMETERS = {
    "num_aux_heads": whole,
    "num_targets": lambda v: (isinstance(v, str) and v == "all") or count(v),
    **dict.fromkeys(
        ["nu_aux", "nu_emb", "nu_naive", "lambda_m", "lambda_d", "lambda_p", "rho"], natural
    ),
    "target_selection": lambda v: callable(v) or among(*TARGET_SELECTIONS)(v),
    **dict.fromkeys(["include_self", "same_level", "public_updates_stats", "quasi_global"], truth),
    **dict.fromkeys(["reset_momentum", "push_sum"], truth),
    "own_candidate": among("same_rank", "main"),
    "calibrate_every": whole,
    "density_weight": optional(positive),
    "density_weights": among("clients", "samples"),
    "density_clip": lambda v: number(v) and 0 < v <= 30,
    "density_divides": truth,
    "density_cap": lambda v: among("none", "shares")(v) or (number(v) and v >= 1),
    "density_gradient": among("stopped", "flowing"),
    "temperature": positive,
    "public_batch": among("shared", "independent"),
    "pool_size": whole,
    "teacher_delay": whole,
    **dict.fromkeys(["pool_refresh", "average_every", "local_steps", "gossip_rounds"], count),
    **dict.fromkeys(["digest_steps", "revisit_steps"], count),
    "local_epochs": optional(positive),
    "compression": among("none", "float16", "int8", "top_3"),
    "ensembles": anything,  # looked at where clients are known
    "label_smoothing": share,
    "embedding_projection": among("none", "linear", "shared_width"),
    "averaging_rate": lambda v: number(v) and 0 < v <= 1,
    "mixing": among("uniform", "metropolis_hastings"),
    "mu": optional(share),
    "digest_loss": among("mae", "kl"),
    "start_step": whole,
    "threshold": lambda v: number(v) and 0 <= v <= 1,
    "label_choice": among("mean", "most_samples"),
    "weighting": among("samples", "clients"),
    **dict.fromkeys(["private_steps", "distill_steps", "density_samples"], count),
    "ratio_quantile": lambda v: number(v) and 0 <= v <= 1,
    "most_ambiguous": lambda v: number(v) and 0 < v <= 2,
    **dict.fromkeys(["kernel_width", "era_temperature", "era_exponent"], positive),
    "aggregation": among("era", "enhanced_era", "mean"),
    "cache_steps": whole,
}
LIKELY = {
    whole: st.integers(0, 5),
    count: st.integers(1, 9),
    truth: st.booleans(),
    share: st.floats(0, 0.9),
    positive: st.floats(1e-3, 3),
    natural: st.floats(0, 3),
}


@st.composite
def some_of(draw, fields, defaults):
    """Some of the fields, mostly as they may be."""
    given = {}
    for field, fits in fields.items():
        if draw(one_in(2)):
            usual = LIKELY.get(fits, st.just(defaults.get(field)))
            given[field] = draw(odd_values if draw(one_in(6)) else usual)
    return given


@st.composite
def records(draw):
    """A record's class, and what it is given."""
    made = draw(st.sampled_from(list(RECORDS)))
    defaults = {field.name: field.default for field in dataclasses.fields(made)}
    return made, draw(some_of(RECORDS[made], defaults))


@kind(records(), examples=60)
def settings_of_training(case):
    made, given = case
    _, why = attempt(lambda: made(**given))
    sound = all(RECORDS[made][field](value) for field, value in given.items())
    if made is mhd.data.Augmentation:
        sound &= given.get("resized_crop") is None or given.get("crop") is None
    assert (why is None) == sound, (case, why)
    return why is None


@st.composite
def algorithms(draw):
    """An algorithm's name, and what its factory is given."""
    name = draw(st.sampled_from(list(ALGORITHMS)))
    defaults = hyperparameters(ALGORITHMS[name])
    fields = {field: HYPERPARAMETERS[field] for field in defaults}
    given = draw(some_of(fields, defaults))
    if draw(one_in(15)):
        given["num_clients"] = 3
    return name, given


@kind(algorithms(), examples=60)
def hyperparameters_of_algorithms(case):
    name, given = case
    algorithm, why = attempt(lambda: ALGORITHMS[name](**given))
    known = hyperparameters(ALGORITHMS[name])
    sound = all(key in known and HYPERPARAMETERS[key](value) for key, value in given.items())
    if sound:
        now = {**known, **given}
        sound &= not (now.get("num_aux_heads") == 0 and now.get("same_level"))
        sound &= not (now.get("pool_size", 0) > 0 and now.get("teacher_delay", 0) > 0)
        sound &= now.get("nu_emb", 1) > 0 or now.get("embedding_projection", "none") == "none"
        by_density = now.get("density_weight") is not None or now.get("target_selection") in (
            "density_ratio",
            "densest",
            "density_robust",
        )
        distills = now.get("nu_aux", now.get("nu_naive", 1)) > 0
        sound &= not by_density or (distills and not now.get("same_level"))
        sound &= now.get("local_epochs") is None or now["local_steps"] == LOCAL_STEPS
        sound &= not now.get("push_sum") or now["mixing"] == "uniform"
        top = str(now.get("compression")).startswith("top")
        sound &= not (top and name == "distributed_distillation")
        sound &= not (top and now.get("digest_loss") == "mae")
    assert (why is None) == bool(sound), (case, why)
    if why is None:
        assert algorithm.name == name
        for key, value in given.items():
            if not isinstance(value, list):  # which become tuples
                assert algorithm.hyperparameters[key] == value
    return why is None


clients = functools.cache(lambda: tiny_clients(4))
numbers_of_clients = st.one_of(st.integers(-1, 5), odd_values)
pairs = st.one_of(
    st.dictionaries(st.integers(0, 3), st.integers(1, 60), max_size=3),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=3),
    st.dictionaries(st.integers(-1, 5), odd_values, max_size=2),
    st.sampled_from(NOT_NUMBERS),
)


@kind(st.tuples(pairs, pairs, pairs))
def numbers_by_client(case):
    names = ("stragglers", "joins", "leaves")
    faults, why = attempt(lambda: mhd.Faults(**dict(zip(names, case, strict=True))))
    least = {"stragglers": 1, "joins": 0, "leaves": 0}
    found = {}
    for name, given in zip(names, case, strict=True):
        if given in ((), [], {}, "", b""):  # nobody
            found[name] = {}
        elif isinstance(given, dict) and given:
            found[name] = given
        elif isinstance(given, list) and all(isinstance(entry, tuple) for entry in given):
            found[name] = dict(given) if len(dict(given)) == len(given) else {0: None}
        else:
            found[name] = {0: None}
    sound = all(
        integer(client) and integer(n) and least[name] <= n < 2**31 - 1
        for name, by_client in found.items()
        for client, n in by_client.items()
    )
    sound = sound and all(n > found["joins"].get(c, -1) for c, n in found["leaves"].items())
    assert (why is None) == sound, (case, why)
    if why:
        return False
    plan, why = attempt(lambda: faults.plan(4, both_ways=False))
    assert (why is None) == all(0 <= client < 4 for given in found.values() for client in given)
    if why is None:
        for client, step in found["joins"].items():
            assert plan.joins[client] == step
    return why is None


groups = st.one_of(
    st.integers(0, 5),
    st.permutations(range(4)).map(lambda order: [order[:2], order[2:]]),
    st.permutations(range(4)).map(lambda order: [order[:3]]),
    st.lists(st.lists(numbers_of_clients, max_size=4), max_size=4),
    st.just(np.full((4, 4), 0.25)),
    st.just(np.eye(4)),
    st.sampled_from([np.full((4, 4), 0.3), np.full((3, 3), 1 / 3), -np.eye(4), [[True, False]]]),
    odd_values,
)


@kind(groups)
def ensembles(given):
    mixing, why = attempt(lambda: mixing_matrix(given, clients()))
    if why is None:
        np.testing.assert_allclose(mixing.sum(axis=1), 1, atol=1e-5)
        assert mixing.shape == (4, 4) and (mixing >= 0).all()
    if isinstance(given, int) and not isinstance(given, bool):
        assert (why is None) == (given in (1, 2, 4))
    rows = [row for row in given if isinstance(row, list)] if isinstance(given, list) else []
    if any(truth(client) for row in rows for client in row):
        assert why
    return why is None


counts = np.array([[3, 0, 2], [0, 0, 5], [1, 1, 1], [4, 0, 0]])
tokens = st.lists(
    st.sampled_from([*"0123456789,;:-", " ", "own", "nan", "liar", "²", "9" * 5000, "99999999999"]),
    max_size=8,
).map("".join)
sets = st.one_of(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=4, max_size=4),
    st.just("own"),
    st.sampled_from(["0-3:0-2", "1:2", "0:0,2;1:2", "0-999999999999:0", "3-1:0", "0:0-", "0:2-0"]),
    st.dictionaries(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1), max_size=3),
    st.dictionaries(numbers_of_clients.filter(lambda k: k.__hash__), odd_values, max_size=3),
    st.lists(st.lists(odd_values, max_size=3), max_size=4),
    tokens,
    odd_values,
)


@kind(sets)
def label_sets(given):
    known, why = attempt(lambda: resolved(given, counts))
    if why is None and known is not None:
        assert known.shape == counts.shape and known.dtype == bool
        assert (known | (counts == 0)).all() and known.any(axis=1).all()
    if isinstance(given, str) and given in ("own", "0-3:0-2", "1:2", "0:0,2;1:2"):
        assert why is None
    if isinstance(given, str) and given in ("3-1:0", "0:0-", "0:2-0"):
        assert "cannot read" in why
    return why is None


@kind(
    st.one_of(
        st.dictionaries(st.integers(0, 3), st.sampled_from(LIES), max_size=4),
        st.dictionaries(numbers_of_clients.filter(lambda k: k.__hash__), odd_values, max_size=3),
        odd_values,
    )
)
def liars(given):
    found, why = attempt(lambda: checked(given, 4))
    if isinstance(given, dict) and all(
        integer(client) and 0 <= client < 4 and isinstance(lie, str) and lie in LIES
        for client, lie in given.items()
    ):
        assert (why is None) == (len(given) < 4)
    if why is None:
        assert all(client in range(4) and lie in LIES for client, lie in found.items())
    return why is None


@kind(
    st.one_of(
        st.sampled_from(["mlp", "mlp:4", "mlp:3,cnn:1", "mlp:2,cnn:2", "mlp:5", "mlp:²", ":4"]),
        st.sampled_from(["mlp:99999999999", "mlp:" + "9" * 5000, "mlp:-1", "mlp:4,", "mlp:4:4"]),
        st.lists(st.sampled_from(["mlp", "cnn"]), max_size=5),
        st.dictionaries(st.integers(0, 4), st.sampled_from(["mlp", "cnn"]), max_size=5),
        tokens,
        odd_values,
    )
)
def models_of_clients(given):
    chosen, why = attempt(lambda: of_each(given, 4, "models", "resnet18:4,resnet34:4"))
    if why is None:
        assert len(chosen) == 4
    expected = {"mlp": ["mlp"] * 4, "mlp:3,cnn:1": ["mlp"] * 3 + ["cnn"]}
    if isinstance(given, str) and given in expected:
        assert chosen == expected[given]
    return why is None


CHANGES = ["flip", "crop:4", "crop:-1", "crop", "flip:1", "cutout:3", "jitter:0.4", "jitter:nan"]
CHANGES += ["resized_crop:0.5", "resized_crop:2", "spin", "", " ", "crop:1e3", "cutout:" + "9" * 99]


@kind(st.lists(st.sampled_from(CHANGES), max_size=4).map(",".join))
def augmentations_as_text(text):
    found, why = attempt(lambda: parse(text))
    listed = [part.strip() for part in text.split(",") if part.strip()]
    parts = set(listed)
    good = {"flip", "crop:4", "cutout:3", "jitter:0.4", "resized_crop:0.5"}
    sound = parts <= good and not {"crop:4", "resized_crop:0.5"} <= parts
    sound &= len(parts) == len(listed)
    assert (why is None) == sound and (why or (found is None) == (not parts)), (text, why)
    return why is None


ODD_FLAGS = ["", "0", "-1", "1", "2", "3", "0.5", "1e300", "nan", "inf", "x", "true", "9" * 30]
ODD_FLAGS += ["9" * 5000, "ring", "0:1", "0:1,0:2", "0,1", "²", "./none", "~nobody/x", "a" * 300]
ODD_FLAGS += ["0-999999999999:0"]
_ELSEWHERE = ("compilation_cache", "coordinator_address", "num_processes", "process_id", "workdir")
_ELSEWHERE += ("tensorboard", "wandb_project")


def names_of_flags():
    """The flags of `experiments.train` that say what a run is."""
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(train)}
    return sorted(own - set(_ELSEWHERE) - {"algorithm"})


SOUND = {
    "topology": ["ring", "complete", "chain", "empty", "ring@0,complete@3"],
    "partition": ["iid", "shards"],
    "num_clients": ["3", "4"],
    "steps": ["1", "50"],
    "batch_size": ["1", "32"],
    "learning_rate": ["0.1", "1e-3"],
    "momentum": ["0.5"],
    "schedule": ["constant", "step"],
    "warmup_steps": ["0", "10", "1000"],
    "eval_every": ["1", "10000"],
    "offline": ["0.5"],
    "stragglers": ["0:4", "0:2,1:3"],
    "leaves": ["2:1"],
    "label_smoothing": ["0", "0.2"],
    "public_fraction": ["0.2"],
    "validation_fraction": ["0.1"],
    "augmentation": ["crop:1", "flip,cutout:2"],
    "client_chunk": ["1", "100"],
    "seed": ["0", "4294967295"],
    "standardize": ["true"],
    "initialization": ["pytorch"],
}


@st.composite
def command_lines(draw):
    """An algorithm, flags by name, and whether they are sound by construction."""
    sound = draw(st.booleans())
    if sound:
        names = draw(st.lists(st.sampled_from(list(SOUND)), max_size=5, unique=True))
        given = {name: draw(st.sampled_from(SOUND[name])) for name in names}
        return draw(st.sampled_from(["mhd", "naive", "fedmd", "isolated"])), given, True
    names = draw(st.lists(st.sampled_from(names_of_flags()), min_size=1, max_size=3, unique=True))
    given = {name: draw(st.sampled_from(ODD_FLAGS + SOUND.get(name, []))) for name in names}
    return draw(st.sampled_from(list(ALGORITHMS))), given, False


def _prepared(algorithm, given) -> int:
    """As `experiments.train` reads its flags, with the status that it would end with before a run."""
    with flagsaver.flagsaver():
        for name in flags.FLAGS:
            flags.FLAGS[name].present = 0
        named = {"algorithm": algorithm, **given}
        try:
            flags.FLAGS(["train", *(f"--{name}={value}" for name, value in named.items())])
        except flags.Error:
            return 1

        def check():
            built, _ = run_flags.algorithm(algorithm, strict=True)
            chosen = run_flags.settings()
            chosen.check(built, flags.FLAGS.seed)
            Plan.checked(1, chosen.eval_every, chosen.checkpoint_every, chosen.steps_per_dispatch)

        return 2 if attempt(check)[1] else 0


@kind(command_lines(), examples=8)
def command_lines_of_train(case):
    algorithm, given, sound = case
    with scratch():
        status = _prepared(algorithm, given)
    assert status == 0 or not sound, case
    return status == 0
