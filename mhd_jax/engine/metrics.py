"""Metrics beside accuracy: those of users' own, and those that come with the library.

A metric is a function `f(logits [N, C], labels [N]) -> float` of one client's head on a set of
samples, called on the host with NumPy arrays: `simulate(..., metrics={"macro_f1": macro_f1})`. For
a regression it gets predicted and true numbers [N, D], both in their own units. Logits outside of a
client's label set are −∞. What it returns counts as unknown if it is not finite. By the names of
further parameters it may ask for `client`, the client's number; `everyone`, the same head's logits of
all clients, [K, N, C]; and `graph`, A(t) of the evaluation's step, [K, K].
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts load when they are used

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.label_sets import IMPOSSIBLE
from mhd_jax.core.tasks import Task
from mhd_jax.core.warned import warn
from mhd_jax.training.metrics import (  # as mhd_jax.metrics had them, for one version
    beta_priv as beta_priv,
)
from mhd_jax.training.metrics import (
    beta_sh as beta_sh,
)
from mhd_jax.training.metrics import (
    correct_by_class as correct_by_class,
)
from mhd_jax.training.metrics import (
    head_names as head_names,
)

Metric = Callable[..., float]
_FURTHER = ("client", "everyone", "graph")
_TAKEN = ("beta_sh", "beta_priv", "beta_own", "per_class_accuracy", "client", "model", "metrics")


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of −log p(label), in nats."""
    return float(-scipy.special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Returns the mean gap between confidence and accuracy over `bins` equal bins of confidence.

    Each bin weighs by its share of the samples (Guo et al., ICML 2017, equation 3). For another
    number of bins give `functools.partial(expected_calibration_error, bins=10)`.
    """
    probabilities = scipy.special.softmax(logits, axis=-1)
    confidence = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    # Bins are open to the left: a confidence on an edge belongs to the lower bin.
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean F1 over the classes that are labels or predictions of some sample."""
    from sklearn.metrics import f1_score  # slow to import, and only this metric needs it

    return float(f1_score(labels, logits.argmax(axis=-1), average="macro", zero_division=0))


def ensemble_accuracy(
    logits: np.ndarray,
    labels: np.ndarray,
    client: int,
    everyone: np.ndarray,
    graph: np.ndarray,
) -> float:
    """Returns the accuracy of a client together with the neighbours that it may learn from.

    The ensemble's prediction is the mean of their probabilities.
    """
    who = np.union1d([client], np.flatnonzero(graph[client] > 0))
    mean = scipy.special.softmax(everyone[who], axis=-1).mean(axis=0)
    return float((mean.argmax(axis=-1) == labels).mean())


def root_mean_squared_error(numbers: np.ndarray, targets: np.ndarray) -> float:
    """Returns the root of the mean squared error over samples and numbers, of a regression."""
    return float(np.sqrt(np.square(numbers - targets, dtype=np.float64).mean()))


def mean_absolute_error(numbers: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean absolute error over samples and numbers, of a regression."""
    return float(np.abs(numbers - targets).mean(dtype=np.float64))


OF_CLASSES = (negative_log_likelihood, expected_calibration_error, macro_f1, ensemble_accuracy)
OF_NUMBERS = (root_mean_squared_error, mean_absolute_error)
METRICS: dict[str, Metric] = {f.__name__: f for f in (*OF_CLASSES, *OF_NUMBERS)}


def fairness(result: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Returns how evenly the final accuracies are spread over the clients.

    Args:
      result: a `Result`, or its summary.

    Returns:
      By metric ("beta_sh", "beta_priv") and head: "worst", the lowest client's; "lowest_tenth", the
      mean of the lowest tenth of the clients, at least one; and "std", the standard deviation over
      clients. Clients of whom a metric is unknown are left out.
    """
    summary = result if isinstance(result, Mapping) else result.summary
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric in ("beta_sh", "beta_priv"):
        found[metric] = {}
        for head in summary[metric]:
            values = _of_clients(summary, metric, head)
            values = np.sort(values[~np.isnan(values)])
            if values.size:
                found[metric][head] = {
                    "worst": float(values[0]),
                    "lowest_tenth": float(values[: max(1, len(values) // 10)].mean()),
                    "std": float(values.std()),
                }
    return found


def share_below(result: Any, isolated: Any, metric: str = "beta_priv", head: str = "main") -> float:
    """Returns the share of clients that are worse off than if each had trained alone.

    Args:
      result: a `Result`.
      isolated: the `Result` of isolated training of the same clients.
      metric: "beta_sh" or "beta_priv".
      head: the head of `result`; of `isolated` it is the main head.

    Returns:
      The share among the clients of whom both are known; NaN if there are none.

    Raises:
      ConfigError: the results are of other numbers of clients, or have no such metric or head.
    """
    for found, name in ((result.summary, head), (isolated.summary, "main")):
        if metric not in ("beta_sh", "beta_priv") or name not in found[metric]:
            raise ConfigError(f"there is no {metric} of a head {name} in both results.")
    own = _of_clients(result.summary, metric, head)
    alone = _of_clients(isolated.summary, metric, "main")
    if len(own) != len(alone):
        raise ConfigError(
            f"the results are of {len(own)} and of {len(alone)} clients; give isolated training of "
            "the same clients."
        )
    known = ~(np.isnan(own) | np.isnan(alone))
    return float((own < alone)[known].mean()) if known.any() else math.nan


def _of_clients(summary: Mapping[str, Any], metric: str, head: str) -> np.ndarray:
    return np.array([each[metric][head] for each in summary["per_client"]], float)


@dataclasses.dataclass(frozen=True)
class OwnMetrics:
    """The metrics of a run by name, each with the further arguments that it asks for."""

    functions: Mapping[str, tuple[Metric, tuple[str, ...]]]

    @classmethod
    def checked(cls, given: Mapping[str, Metric] | Sequence[str] | None) -> OwnMetrics:
        """Checks names and functions; None gives no metrics, and a list names the library's.

        Raises:
          ConfigError: a name that is taken, or something that is no metric.
        """
        if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
            given = named(given)
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                f"metrics are functions by name, like {{'macro_f1': f}}, or names of the library's, like "
                f"['macro_f1'], not {given!r}."
            )
        return cls({name: (f, _asked(name, f)) for name, f in (given or {}).items()})

    def try_out(self, num_clients: int, task: Task, num_outputs: int) -> None:
        """Calls each metric on a few made logits, so that a run does not fail at its evaluation.

        Args:
          num_clients: K.
          task: what the clients predict.
          num_outputs: C, the outputs of a head.

        Raises:
          ConfigError: a metric raises an error, returns no number, or is the library's for another
            task.
        """
        if not self.functions:
            return
        others, what = (OF_NUMBERS, "numbers") if task.has_classes else (OF_CLASSES, "classes")
        for name, (function, _) in self.functions.items():
            if function in others:
                raise ConfigError(f"the metric {name} is of {what}; leave it out.")
        rng = np.random.default_rng(0)
        count = 4 * num_outputs
        labels: np.ndarray = np.resize(np.arange(num_outputs, dtype=np.int32), count)
        if not task.has_classes:
            labels = rng.normal(size=(count, num_outputs)).astype(np.float32)
        logits = rng.normal(size=(num_clients, count, 1, num_outputs)).astype(np.float32)
        self.of(logits, labels, np.ones((num_clients,) * 2, np.float32) - np.eye(num_clients))

    def of(
        self, logits: np.ndarray, labels: np.ndarray, graph: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns each metric by client and head, [K, H].

        Args:
          logits: [K, N, H, C].
          labels: int [N].
          graph: A(t), [K, K].

        Raises:
          ConfigError: a metric raises an error, or returns no number.
        """
        heads = head_names(logits.shape[2])
        if labels.ndim == 1:  # classes outside of a label set have no probability at all
            logits = np.where(logits <= IMPOSSIBLE, -np.inf, logits)
        found = {}
        for name, (function, asked) in self.functions.items():
            values = np.empty((len(logits), len(heads)))
            for client in range(len(logits)):
                for rank, head in enumerate(heads):
                    everyone = logits[:, :, rank]
                    further = {"client": client, "everyone": everyone, "graph": graph}
                    own = {what: further[what] for what in asked}
                    who = f"the metric {name} of client {client}, head {head},"
                    values[client, rank] = _called(function, who, everyone[client], labels, own)
            if np.isinf(values).any():
                warn(f"the metric {name} is infinite for some clients, which counts as unknown.")
            found[name] = np.where(np.isinf(values), np.nan, values)
        return found


NO_METRICS = OwnMetrics({})


def mean_of_own(scores: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Returns each client's and head's mean score on the client's own samples, [K, H].

    Args:
      scores: of each sample, [K, N, H]; whether it is correct, of classes.
      owner: the client of each sample, int [N]; −1 for nobody's. A client without samples gets NaN.
    """
    mine = owner[None, :] == np.arange(len(scores))[:, None]  # [K, N]
    total, counts = np.where(mine[..., None], scores, 0).sum(axis=1), mine.sum(axis=1)[:, None]
    return np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)


def named(names: Iterable[str]) -> dict[str, Metric]:
    """Returns the library's metrics of these names.

    Raises:
      ConfigError: there is no metric of a name.
    """
    names = [name.strip() for name in names]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(
            f"there is no metric {', '.join(unknown)}; choose among {', '.join(METRICS)}."
        )
    return {name: METRICS[name] for name in names}


def _asked(name: Any, function: Any) -> tuple[str, ...]:
    if not (isinstance(name, str) and name.isidentifier()) or name in _TAKEN:
        raise ConfigError(f"a metric's name must be a word that is not taken, not {name!r}.")
    if not callable(function):
        raise ConfigError(
            f"the metric {name} must be a function (logits, labels) -> float, not {function!r}."
        )
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return ()
    return tuple(what for what in _FURTHER if what in parameters)


def _called(
    function: Metric, who: str, logits: np.ndarray, labels: np.ndarray, further: dict[str, Any]
) -> float:
    try:
        value = function(logits, labels, **further)
    except Exception as error:  # users' code may raise any exception
        raise ConfigError(f"{who} failed ({in_a_line(error)}).") from error
    if not isinstance(value, numbers.Real | np.ndarray) or np.ndim(value) != 0:
        shape = f" of shape {list(np.shape(value))}" if isinstance(value, np.ndarray) else ""
        raise ConfigError(f"{who} must be a number, not of type {type(value).__name__}{shape}.")
    return float(value)
