"""Contents of `summary.json`, and the records of a history."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mhd_jax import topology as topologies
from mhd_jax.engine.metrics import NO_METRICS, OwnMetrics, fairness, mean_of_own
from mhd_jax.engine.run import Run
from mhd_jax.engine.samples import ToEvaluate
from mhd_jax.engine.steps import Carry
from mhd_jax.exchange import diagnostics
from mhd_jax.exchange import messages as communication
from mhd_jax.runs.folder import jsonable
from mhd_jax.topology import distances
from mhd_jax.training.metrics import head_names

_BETAS = ("beta_sh", "beta_priv", "beta_own")
_OF_THE_LAST = ("beta_own", "metrics", "honest", "validation")  # entries of the last record
_MOST_BY_CLASS = 4000  # clients times classes up to which records hold accuracies by class


def record_of(
    run: Run,
    carry: Carry,
    per_class: np.ndarray,
    seconds: float,
    metrics: OwnMetrics = NO_METRICS,
) -> dict[str, Any]:
    """Returns an evaluation's record for the history, after `seconds` of training.

    `per_class` are the accuracies on test samples by class, [K, H, C].
    """
    sent = communication.total(run.messages(carry), run.senders)
    record = {
        "step": int(carry.state.step),
        "seed": run.seed,
        **run.accuracies(per_class),
        **_chance(run),
        "train": run.means(carry),
        "messages": sent["messages"],
        "bytes": sent["total_bytes"],
        **run.non_finite(carry),
        "seconds": seconds,
    }
    record["per_client"] |= _by_class(per_class)
    if run.num_active <= diagnostics.MOST_CLIENTS:
        record |= jsonable({**_followed(run, carry), **run.faults(carry)})
    data = run.clients.data
    owner = run.clients.test_owner
    _add_measured(record, run, carry, run.test, data.test_targets, metrics, owner)
    if run.validation is not None:
        record["validation"] = run.accuracies(run.per_class_accuracy(carry.state, run.validation))
        targets = data.targets[run.clients.validation]
        _add_measured(record["validation"], run, carry, run.validation, targets, metrics)
    return record


def _followed(run: Run, carry: Carry) -> dict[str, Any]:
    """Returns shares of samples on which i learned from j until now, [K, K], a mean over heads."""
    found = run.diagnostics(carry)
    if not found:
        return {}
    return {"followed": found["diagnostics"]["followed"].mean(axis=0, dtype=float).round(3)}


def _add_measured(
    record: dict[str, Any],
    run: Run,
    carry: Carry,
    samples: ToEvaluate,
    targets: np.ndarray,
    metrics: OwnMetrics,
    owner: np.ndarray | None = None,
) -> None:
    """Adds own metrics on samples to a record, and accuracies on each client's own of them.

    Both come as means over clients, and for each client. `owner` names the client of each sample;
    None if samples have no owners.
    """
    if not metrics.functions and owner is None:
        return
    logits, each = run.logits(carry.state, samples), record["per_client"]
    task = run.clients.task
    if owner is not None:
        scores = np.asarray(task.scores(jnp.asarray(logits), jnp.asarray(targets)[None, :, None]))
        _add(record, each, {"beta_own": mean_of_own(scores, owner)})
    if metrics.functions:
        graph = np.asarray(run.topology.at(carry.state.step))
        record["metrics"], each["metrics"] = {}, {}
        found = metrics.of(task.in_own_units(logits), task.in_own_units(targets), graph)
        _add(record["metrics"], each["metrics"], found)


def _add(means: dict[str, Any], each: dict[str, Any], found: Mapping[str, np.ndarray]) -> None:
    """Adds numbers by client and head, [K, H]: means over clients, and the numbers of `each`."""
    for name, values in found.items():
        heads = head_names(values.shape[1])
        known = [column[~np.isnan(column)] for column in values.T]
        means[name] = {
            head: float(column.mean()) if column.size else None
            for head, column in zip(heads, known, strict=True)
        }
        each[name] = {head: jsonable(values[:, h]) for h, head in enumerate(heads)}


def summarize(
    run: Run,
    carry: Carry,
    per_class: np.ndarray,
    history: Sequence[Mapping[str, Any]],
    compile_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """Returns the content of `summary.json` for a finished run; `per_class` as in `record_of`."""
    last = history[-1]
    consensus = run.consensus(carry.state)
    few = len(per_class) <= diagnostics.MOST_CLIENTS
    return jsonable(
        {
            "algorithm": run.algorithm.name,
            "dataset": run.everyone.data.name,
            "num_clients": run.everyone.num_clients,
            "steps": run.steps,
            "seed": run.seed,
            "status": "finished",
            "beta_sh": last["beta_sh"],
            "beta_priv": last["beta_priv"],
            **_chance(run),
            **{name: last[name] for name in _OF_THE_LAST if name in last},
            **({} if consensus is None else {"consensus": consensus}),
            "per_client": (per_client := _per_client(run, per_class, last["per_client"])),
            "fairness": fairness({**last, "per_client": per_client}),
            "data": {
                "class_names": run.everyone.data.class_names,
                **_described_numbers(run),
                "samples": run.everyone.role_counts(),
                "private_samples": run.everyone.label_counts(),
            },
            "by_hops": distances.accuracies(
                per_class, run.hops_to_classes(), head_names(per_class.shape[1])
            ),
            "topology": topologies.describe(run.topology, run.steps),
            "communication": _communication(run, carry, history),
            **(run.diagnostics(carry) if few else {}),
            **(run.density(carry.state) if few else {}),
            **run.faults(carry),
            "timing": {
                "compile_seconds": compile_seconds,
                "seconds_per_step": seconds / run.steps,
                "steps_per_second": run.steps / seconds,
                "peak_memory_bytes": _peak_memory(),
            },
            **({} if run.origin is None else {"init": run.origin}),
            "settings": run.settings,
        }
    )


def _chance(run: Run) -> dict[str, float]:
    """Returns the score of a guess where it is not 1/C: a regression's is that of the mean."""
    return {} if run.clients.task.has_classes else {"chance": 0.0}


def _described_numbers(run: Run) -> dict[str, Any]:
    """Returns the targets of a regression, in their own units; {} for classes."""
    found = run.everyone.data.numbers
    if found is None:
        return {}
    described = zip(found.names, found.task.mean, found.task.deviation, strict=True)
    return {
        "targets": [
            dict(zip(("name", "mean", "deviation"), each, strict=True)) for each in described
        ]
    }


def _per_client(run: Run, per_class: np.ndarray, each: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns each client's model and accuracies; `each` are the last record's of all clients."""
    names, models = head_names(per_class.shape[1]), run.everyone.model_names
    return [
        {
            "client": i,
            "model": models[i],
            **{beta: _of_client(each[beta], i) for beta in _BETAS if beta in each},
            **(
                {"metrics": {name: _of_client(of, i) for name, of in each["metrics"].items()}}
                if "metrics" in each
                else {}
            ),
            "per_class_accuracy": dict(zip(names, own, strict=True)),
        }
        for i, own in enumerate(per_class)
    ]


def _of_client(by_head: Mapping[str, Sequence[Any]], client: int) -> dict[str, Any]:
    return {head: values[client] for head, values in by_head.items()}


def _communication(run: Run, carry: Carry, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns counts and bytes of messages: in total, by type and, of few clients, by edge."""
    messages, named = run.messages(carry), diagnostics.MOST_CLIENTS**2
    by_edge = {kind: count for kind, count in messages.items() if count.size <= named}
    found = {**communication.total(messages, run.senders), "by_edge": by_edge}
    if "non_finite" in history[-1]:
        found["non_finite"] = sum(record.get("non_finite", 0) for record in history)
    return found


def executed(run: Run, runs_at_once: int) -> dict[str, Any]:
    """Returns choices outside the settings that affect rounding, of the run's last process."""
    execution = run.execution
    return {
        "num_devices": execution.num_devices,
        "client_chunk": execution.chunk,
        "recompute": execution.recompute,
        "data_placement": "device" if run.stream is None else "host",
        "runs_at_once": runs_at_once,
    }


def _by_class(per_class: np.ndarray) -> dict[str, Any]:
    """Returns accuracies by class of the main and the last head; {} if there are too many."""
    num_clients, num_heads, num_classes = per_class.shape
    if num_clients * num_classes > _MOST_BY_CLASS:
        return {}
    names = head_names(num_heads)
    kept = {names[h]: per_class[:, h].round(4) for h in sorted({0, num_heads - 1})}
    return {"per_class_accuracy": jsonable(kept)}


def _peak_memory() -> int:
    """Returns the peak bytes of memory: the accelerator's if known, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
