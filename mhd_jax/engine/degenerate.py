"""Warnings, before training, about settings that run but make little sense, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.algorithms import hyperparameters as defaults_of
from mhd_jax.algorithms.fedavg import steps_of_epochs
from mhd_jax.clients import Clients
from mhd_jax.core.types import Algorithm, State
from mhd_jax.core.validation import is_integer
from mhd_jax.core.warned import warn
from mhd_jax.data.batching import BatchSpec
from mhd_jax.training import optim

_MOST_NAMED = 10
_OF_DENSITY = (
    *("density_weights", "density_clip", "density_divides", "density_cap", "density_gradient"),
)
_WITHOUT_CONFIDENCE = (
    *("random", "mean", "median", "trimmed_mean", "agreement", "density_ratio", "densest"),
    "density_robust",
)


def warn_of(
    algorithm: Algorithm,
    clients: Clients,
    spec: BatchSpec,
    batch_size: int,
    optimizers: Sequence[Any],
    steps: int,
    state: State,
) -> None:
    """Warns about each setting of a run with which its training makes little sense.

    Args:
      algorithm, clients, spec, batch_size, steps: the run's; `clients` are those that train.
      optimizers: of its groups.
      state: shapes of the run's state.
    """
    sentences = [
        *_of_batches(clients, spec, batch_size),
        *_of_batch_statistics(clients, spec, state),
        *_of_intervals(algorithm.hyperparameters, clients, spec, optimizers, steps),
        *_of_what_has_no_effect(
            algorithm, any("density" in group.params for group in state.groups)
        ),
    ]
    for sentence in sentences:
        warn(sentence)


def _of_batches(clients: Clients, spec: BatchSpec, batch_size: int) -> Iterator[str]:
    """Yields a warning for each batch that is larger than the set it is drawn from.

    In pooled training a private batch is that of several clients.
    """
    largest = int(clients.label_counts().sum(axis=1).max())
    if spec.private > largest:
        yield (
            f"a private batch has {spec.private:,} samples, but no client has more than {largest:,}, so "
            f"that every batch repeats samples; set batch_size to at most "
            f"{max(1, largest * batch_size // spec.private):,}, or take fewer "
            "clients."
        )
    if spec.public > clients.num_public:
        yield (
            f"public_batch_size is {spec.public:,}, but there are {clients.num_public:,} public "
            "samples, so that every batch repeats some; set it to at most "
            f"{clients.num_public:,}, or raise public_fraction."
        )


def _of_batch_statistics(clients: Clients, spec: BatchSpec, state: State) -> Iterator[str]:
    """Yields warnings about batch normalisation over one sample, which equals its own mean."""
    members = [i for group in state.groups if "batch_stats" in group.stats for i in group.members]
    own = [i for i in members if i < clients.num_clients]
    remedy = "take another norm ('layer' or 'group', where the model knows it)"
    sizes = {"batch_size": spec.private, "public_batch_size": spec.public}
    for name in [name for name, size in sizes.items() if own and size == 1]:
        yield (
            f"batch normalisation needs several samples in a batch, but {name} is 1, so that a sample is "
            f"compared with itself; raise it, or {remedy}."
        )
    counts = clients.label_counts().sum(axis=1)
    single = [i for i in own if counts[i] == 1]
    if single and spec.private > 1:
        named = ", ".join(map(str, single[:_MOST_NAMED]))
        yield (
            f"batch normalisation needs several samples in a batch, but client {named} has a single "
            f"private one; {remedy}, or deal the data otherwise."
        )


def _of_intervals(
    hyperparameters: Mapping[str, Any],
    clients: Clients,
    spec: BatchSpec,
    optimizers: Sequence[Any],
    steps: int,
) -> Iterator[str]:
    """Yields a warning for each interval that is longer than the run, so that nothing happens."""
    has_pool = bool(hyperparameters.get("pool_size"))
    averages = hyperparameters.get("ensembles") is not None
    delay = hyperparameters.get("teacher_delay", 0)
    warmup = max(
        each.warmup_steps if isinstance(each, optim.Recorded) else 0 for each in optimizers
    )
    epochs = hyperparameters.get("local_epochs")
    has_rounds = epochs is None and hyperparameters.get("lambda_p") != 0
    local_steps = hyperparameters.get("local_steps", 0) if has_rounds else 0
    exchanged = (
        "no prototypes are exchanged" if "lambda_p" in hyperparameters else "nobody averages"
    )
    of_epochs = 0 if epochs is None else steps_of_epochs(epochs, clients, spec.private)
    due = (  # (name, value if it is used, least value that is too large, consequence)
        ("teacher_delay", delay, max(1, steps - 1), "teachers never change"),
        (
            "pool_refresh",
            has_pool * hyperparameters.get("pool_refresh", 0),
            steps,
            "pools never change",
        ),
        (
            "average_every",
            averages * hyperparameters.get("average_every", 0),
            steps + 1,
            "nobody averages",
        ),
        ("local_steps", local_steps, steps + 1, exchanged),
        ("start_step", hyperparameters.get("start_step", 0), steps, "nobody labels samples"),
        ("a round of local_epochs", of_epochs, steps + 1, "nobody averages"),
        ("warmup_steps", warmup, steps, "the schedule after the warm-up never begins"),
    )
    for name, value, too_large, what in due:
        if is_integer(value) and value >= too_large:
            yield f"{name} is {value:,}, but the run has {steps:,} steps: {what}; lower it."


def _of_what_has_no_effect(algorithm: Algorithm, has_density: bool) -> Iterator[str]:
    """Yields a warning for each hyperparameter that was chosen, and that others leave without effect."""
    factory = algorithm.factory
    # A user's own algorithm may mean something else by these names.
    if factory is None or factory not in ALGORITHMS.values():
        return
    given, defaults = algorithm.hyperparameters, defaults_of(factory)
    heads, own = given.get("num_aux_heads", 0), given.get("include_self", False)
    needs = (  # (names, whether they are used, when they are)
        (
            _OF_DENSITY,
            has_density,
            "with a density_weight, or a target_selection by density ratios",
        ),
        (
            ("calibrate_every",),
            given.get("target_selection") not in _WITHOUT_CONFIDENCE,
            "with a target_selection that compares confidence",
        ),
        (
            ("target_selection", "temperature", "own_candidate", "same_level"),
            given.get("nu_aux", given.get("nu_naive")) != 0,
            "where the distillation has a weight above 0",
        ),
        (("pool_refresh",), given.get("pool_size"), "with a pool_size above 0"),
        (("average_every",), given.get("ensembles") is not None, "with ensembles"),
        (("own_candidate",), heads and own, "with auxiliary heads and include_self"),
        (("era_temperature",), given.get("aggregation") == "era", "with the aggregation era"),
        (("era_exponent",), given.get("aggregation") == "enhanced_era", "with enhanced_era"),
        (("weighting",), given.get("lambda_p") != 0, "with a lambda_p above 0"),
    )
    for names, is_used, when in needs:
        for name in names:
            if name in defaults and not is_used and given[name] != defaults[name]:
                yield f"{name} is {given[name]!r}, which has no effect: it counts only {when}."
