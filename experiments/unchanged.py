r"""Tests whether results are unchanged: records a matrix of short runs, and compares it later.

  python -m experiments.unchanged --record=runs/before
  python -m experiments.unchanged --against=runs/before

Between the two commands the code is changed in a way that should change no result. A run is "equal"
if its state, history and summary are equal bit for bit (without times). It is "rounding" if arrays of
the state differ, but none by more than `--tolerance` times its largest number; if numbers of history
and summary, which follow the state, differ by at most 1 % or 0.03 (a test sample of 35 that is predicted
otherwise); and if all else is the same, such as counts. A run is "new" if it was not recorded, and "gone" if it was
but is none any more. Both must run on the same machine with the same versions of JAX, as other processors round
differently. The exit status is 1 if a run differs or is gone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.table import Table

import mhd_jax as mhd
from mhd_jax.cli import launch
from mhd_jax.core.files import folder_here, make_folder

STEPS = 20
Verdict = tuple[str, str, str]  # a run's name, the verdict, the largest difference
_TIMES = ("timing", "seconds")
_FOLLOWS = {"rel_tol": 0.01, "abs_tol": 0.03}  # how far numbers may differ where the state rounds
_CLOSE = " (close)"

_RECORD = flags.DEFINE_string("record", None, "Folder that takes what the runs find.")
_AGAINST = flags.DEFINE_string("against", None, "Folder of an earlier --record to compare with.")
_RUNS = flags.DEFINE_list("runs", [], "Parts of names of runs; by default all.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 1e-6, "Largest difference that counts as rounding, over an array's largest number."
)


def clients(count: int = 5, model: Any = "mlp", **how: Any) -> mhd.Clients:
    """Makes clients that share the digits, by default i.i.d."""
    return mhd.make_clients(
        "digits", count, model, **{"partition": "iid", "validation_fraction": 0.1, **how}
    )


def algorithm(name: str, **options: Any) -> mhd.Algorithm:
    """Makes the algorithm of that name."""
    return mhd.algorithms.ALGORITHMS[name](**options)


def faulty(**how: Any) -> mhd.Faults:
    """Returns faults of several kinds; arguments add or replace some."""
    return mhd.Faults(
        **{"link_loss": 0.2, "offline": 0.3, "offline_steps": 3, "stragglers": {1: 2}, **how}
    )


def matrix() -> dict[str, dict[str, Any]]:
    """Returns arguments of `mhd.simulate` by the run's name; `seeds` are those of joint runs."""
    return {**_of_all_algorithms(), **_ways_to_run(), **_of_mhd(), **_of_others()}


def _of_all_algorithms() -> dict[str, dict[str, Any]]:
    """Returns a run of each algorithm, and runs with faults."""
    sgd = mhd.optim.SGD(momentum=0.9, schedule="cosine", warmup_steps=4)
    by_peers, by_a_server = ("mhd", "distributed_distillation"), ("fedavg", "fedmd")
    lost = dict.fromkeys(by_peers, 0.2) | dict.fromkeys(by_a_server, 0.0)
    return {name: {"algorithm": name, "optimizer": sgd} for name in mhd.algorithms.ALGORITHMS} | {
        f"{name}, faults": {
            "algorithm": name,
            "faults": faulty(participation=0.75, link_loss=link_loss),
        }
        for name, link_loss in lost.items()
    }


def _ways_to_run() -> dict[str, dict[str, Any]]:
    """Returns joint runs, and runs with other choices of the engine."""
    ways: dict[str, dict[str, Any]] = {
        "streamed": {"data_placement": "host"},
        "chunks": {"client_chunk": 2},
        "two devices": {"num_devices": 2},
    }
    return {
        f"{name}, joint": {"algorithm": name, "seeds": (0, 1)} for name in ("mhd", "fedavg")
    } | {
        f"{name}, {way}": {"algorithm": name, **how}
        for name in ("mhd", "ccl")
        for way, how in ways.items()
    }


def _of_mhd() -> dict[str, dict[str, Any]]:
    """Returns runs with options of MHD."""
    return {
        "mhd, pools": {
            "algorithm": algorithm("mhd", pool_size=2, pool_refresh=5, num_targets="all"),
            "faults": faulty(joins={0: 3}, leaves={3: 15}),
        },
        "mhd, delayed teachers": {"algorithm": algorithm("mhd", teacher_delay=3)},
        "mhd, liars, robust, 8 bits": {
            "algorithm": algorithm(
                "mhd", num_targets="all", target_selection="robust", compression="int8"
            ),
            "clients": clients(adversaries={0: "label_flip", 2: "nan", 4: "replay"}),
        },
        "mhd, quarantine": {
            "algorithm": algorithm("mhd", same_level=True, compression="top_3"),
            "on_nonfinite": "quarantine",
        },
        "mhd, unlike models, ensembles": {
            "algorithm": algorithm(
                "mhd",
                public_batch="independent",
                embedding_projection="linear",
                nu_emb=0.5,
                ensembles=((0, 1), (2, 3)),
                average_every=5,
            ),
            "clients": clients(model=["mlp"] * 2 + ["cnn"] * 3, norm="batch"),
            "topology": mhd.topology.named("random_matching@0,erdos_renyi@8", 5, redraw_every=3),
        },
        "mhd, label sets, unlabelled": {
            "algorithm": algorithm("mhd", num_aux_heads=2, temperature=2.0),
            "clients": clients(
                partition=mhd.partition.primary_labels(4),
                label_sets="own",
                objectives={3: "unlabelled"},
            ),
        },
        "mhd, rotation": {
            "algorithm": "mhd",
            "clients": clients(3, "cnn", objectives={1: "rotation", 2: "simclr"}),
        },
        "mhd, images augmented": {
            "algorithm": algorithm("mhd", num_aux_heads=1),
            "clients": clients(3, "resnet8", norm="batch"),
            "augmentation": "flip,crop:1",
            "augment_public": True,
        },
    }


def _of_others() -> dict[str, dict[str, Any]]:
    """Returns runs with options of the other algorithms."""
    return {
        "naive, bfloat16": {"algorithm": "naive", "compute_dtype": "bfloat16"},
        "fedmd, label sets, kl": {
            "algorithm": algorithm("fedmd", digest_loss="kl", digest_steps=2, revisit_steps=2),
            "clients": clients(
                partition=mhd.partition.primary_labels(5, skew=math.inf), label_sets="own"
            ),
        },
        "selective_fd, faults, liars": {
            "algorithm": algorithm("selective_fd", private_steps=2, distill_steps=2),
            "clients": clients(adversaries={0: "label_flip", 2: "nan", 4: "replay"}),
            "faults": faulty(),
        },
        "ds_fl, cache, label sets": {
            "algorithm": algorithm(
                "ds_fl", private_steps=2, distill_steps=2, cache_steps=6, compression="int8"
            ),
            "clients": clients(partition=mhd.partition.primary_labels(4), label_sets="own"),
        },
        "distributed_distillation, 8 bits": {
            "algorithm": algorithm("distributed_distillation", compression="int8"),
        },
        "dsgd, faults": {
            "algorithm": algorithm("dsgd", mixing="metropolis_hastings"),
            "faults": faulty(),
        },
        "dsgd, push-sum": {
            "algorithm": algorithm("dsgd", push_sum=True, gossip_rounds=2),
            "topology": "exponential",
        },
        "ccl, circulant, evonorm": {
            "algorithm": algorithm("ccl", averaging_rate=0.9),
            "clients": clients(6, "cnn", norm="evonorm", initialization="he_fan_out"),
            "topology": mhd.topology.circulant(6, (1, 2)),
        },
        "idkd, early": {"algorithm": algorithm("idkd", start_step=8, threshold=0.3)},
        "idkd, liars, most samples": {
            "algorithm": algorithm(
                "idkd",
                start_step=4,
                threshold=0.0,
                label_choice="most_samples",
                mixing="metropolis_hastings",
            ),
            "clients": clients(adversaries={0: "label_flip", 4: "replay"}),
            "faults": faulty(),
        },
        "fedavg, epochs": {
            "algorithm": algorithm("fedavg", local_epochs=0.2, reset_momentum=False),
        },
    }


def found_by(settings: Mapping[str, Any]) -> list[mhd.Result]:
    """Trains and returns the results of a run, or of joint runs."""
    given = {
        "topology": "ring",
        "clients": None,
        "steps": STEPS,
        "eval_every": STEPS // 2,
        "batch_size": 8,
        "public_batch_size": 16,
        "num_devices": 1,
        **settings,
        "progress": False,
    }
    given["clients"] = given["clients"] or clients()
    seeds = given.pop("seeds", (0,))
    several = {name: [given.pop(name)] * len(seeds) for name in ("topology", "clients")}
    return mhd.simulate_seeds(several["topology"], several["clients"], seeds=seeds, **given)


def arrays_of(results: list[mhd.Result]) -> dict[str, np.ndarray]:
    """Returns the arrays of the final states, numbered in order; random keys as their data."""

    def raw(leaf: Any) -> np.ndarray:
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        )
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        # NumPy's files have no bfloat16.
        return array if array.dtype.isbuiltin else array.astype(np.float32)

    leaves = jax.tree.leaves([result.state for result in results])
    return {f"{number:04}": raw(leaf) for number, leaf in enumerate(leaves)}


def records_of(results: list[mhd.Result]) -> Any:
    """Returns histories and summaries without times, after a round trip through JSON."""

    def timeless(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: timeless(v) for k, v in value.items() if k not in _TIMES}
        return [timeless(v) for v in value] if isinstance(value, list | tuple) else value

    found = [timeless({"history": r.history, "summary": r.summary}) for r in results]
    return json.loads(json.dumps(found))


def path_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the path of a run's two files, without their suffixes."""
    return folder / hashlib.sha256(name.encode()).hexdigest()[:16]


def record(folder: pathlib.Path, name: str, results: list[mhd.Result]) -> None:
    """Writes a run's arrays and records to files."""
    path = path_of(folder, name)
    np.savez_compressed(path.with_suffix(".npz"), **arrays_of(results))  # type: ignore[arg-type]
    path.with_suffix(".json").write_text(
        json.dumps({"name": name, "records": records_of(results)}, indent=1)
    )


def compared(folder: pathlib.Path, name: str, results: list[mhd.Result]) -> tuple[str, str]:
    """Compares results with recorded ones.

    Returns:
      "equal", "rounding", "differs" or "new", and a text on the difference.
    """
    path = path_of(folder, name)
    if not path.with_suffix(".json").exists():
        return "new", ""
    before = json.loads(path.with_suffix(".json").read_text())["records"]
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    now, records = arrays_of(results), records_of(results)
    shapes = [(a.shape, a.dtype) for a in now.values()]
    if shapes != [(a.shape, a.dtype) for a in arrays.values()]:
        return "differs", "shapes or types of the state"
    distance = max(itertools.starmap(_distance, zip(now.values(), arrays.values(), strict=True)))
    other = list(_differences(before, records))
    if distance == 0 and not other:
        return "equal", ""
    # Numbers follow the state's rounding, if it rounds; all other entries must not change.
    changed = [entry for entry in other if distance == 0 or not entry.endswith(_CLOSE)]
    said = "; ".join([f"state {distance:.1e}", *(changed or other)[:1]])
    return ("rounding" if distance <= _TOLERANCE.value and not changed else "differs"), said


def gone(folder: pathlib.Path, parts: Sequence[str]) -> list[str]:
    """Returns the recorded runs, with one of `parts` in their names, that there are no longer."""
    names, there = [], matrix()
    for path in sorted(folder.glob("*.json")):
        names.append(json.loads(path.read_text())["name"])
    return [name for name in names if name not in there and any(part in name for part in parts)]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference over the largest number; inf if what is not finite differs."""
    if np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
        return 0.0
    finite = np.isfinite(one) & np.isfinite(other)
    if one.dtype.kind != "f" or not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return float("inf")
    difference = np.abs(one[finite].astype(float) - other[finite])
    return float(difference.max() / max(np.abs(other[finite]).max(), 1e-3))


def _differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yields a text for each entry in which two records differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if key in one and key in other:
                yield from _differences(one[key], other[key], f"{where}/{key}")
            else:
                yield f"{where}/{key} is in one of them"
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{where}/{number}")
    elif one != other and not (one != one and other != other):
        is_float = isinstance(one, float) and isinstance(other, float)
        is_close = is_float and math.isclose(one, other, **_FOLLOWS)
        yield f"{where}: {one!r}, now {other!r}{_CLOSE if is_close else ''}"


def verdicts(chosen: Mapping[str, Mapping[str, Any]], folder: pathlib.Path) -> Iterator[Verdict]:
    """Trains the runs one after the other, records or compares each, and yields the verdicts."""
    for number, (name, settings) in enumerate(chosen.items(), start=1):
        print(f"[{number}/{len(chosen)}] {name}", file=sys.stderr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = found_by(settings)
        if _RECORD.value:
            record(folder, name, results)
            yield name, "recorded", ""
        else:
            yield name, *compared(folder, name, results)
        jax.clear_caches()


def main() -> None:
    """Records or compares the runs that the flags name."""
    if (_RECORD.value is None) == (_AGAINST.value is None):
        raise mhd.ConfigError("give one of --record and --against, with a folder.")
    folder = folder_here(_RECORD.value or _AGAINST.value, "--record")
    if _AGAINST.value and not folder.is_dir():
        raise mhd.ConfigError(f"there is no folder {folder}; make it by --record={folder}.")
    parts = _RUNS.value or [""]
    chosen = {name: run for name, run in matrix().items() if any(part in name for part in parts)}
    if not chosen:
        raise mhd.ConfigError(
            f"no run has {' or '.join(parts)} in its name: {', '.join(matrix())}."
        )
    if _AGAINST.value and not any(
        path_of(folder, name).with_suffix(".json").exists() for name in chosen
    ):
        raise mhd.ConfigError(
            f"{folder} has a record of none of these runs; name the folder that --record wrote."
        )
    if _RECORD.value:
        make_folder(folder, "folder of --record")
    found = list(verdicts(chosen, folder))
    if _AGAINST.value:
        found += [(name, "gone", "") for name in gone(folder, parts)]
    table = Table("run", "", "what differs")
    for row in found:
        table.add_row(*row)
    launch.console().print(table)
    if any(verdict in ("differs", "gone") for _, verdict, _ in found):
        sys.exit(1)


if __name__ == "__main__":
    # Two devices on any machine, so that rounding does not depend on the number of cores.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    )
    launch.run(main)
