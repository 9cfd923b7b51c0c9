"""The help of `mhd COMMAND --help` and `mhd help ALGORITHM`, as wide as the terminal."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from mhd_jax.algorithms import ALGORITHMS, hyperparameters

_ASKED = re.compile(r"-h|--?help(short|full|=all)?")
_ALL = re.compile(r"--?help=all|--?helpfull")
_WIDEST, _NARROWEST = 120, 50
_INDENT = 30  # columns of the flags' names
_DEVICES = (
    *("compute_dtype", "data_placement", "client_chunk", "num_devices", "steps_per_dispatch"),
    *("coordinator_address", "num_processes", "process_id", "compilation_cache"),
)
_OUTPUT = (
    *("workdir", "overwrite", "output", "checkpoint_every", "keep_checkpoints", "keep_best"),
    *("fall_back", "tensorboard", "wandb_project", "json"),
)


def asked(arguments: Sequence[str]) -> bool:
    """Tells whether a command line asks for help."""
    return any(map(_ASKED.fullmatch, arguments))


def of_program(arguments: Sequence[str]) -> str:
    """Returns the help of this process's program.

    Args:
      arguments: its command line: of the hyperparameters only those of the algorithms that it
        names are listed, unless it asks for all.
    """
    found = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    chosen = None if any(map(_ALL.fullmatch, arguments)) else _algorithms(found, arguments)
    parts = [(sys.modules["__main__"].__doc__ or "").strip()]
    for title, names in grouped(found).items():
        shown, about = names, title
        if title == "algorithm" and chosen is not None:
            own = {name for each in chosen for name in hyperparameters(ALGORITHMS[each])}
            shown = [name for name in names if name in {"adversaries", *own}]
            about = f"algorithm, here {', '.join(chosen)}; --help=all lists those of all algorithms"
        if shown:
            parts.append("\n".join([f"{about}:", *(_flag(found[name]) for name in shown)]))
    return "\n\n".join(parts)


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of flags by group, a command's own ones in the first."""
    left = list(names)
    if "partition" not in left:  # a command without settings of a run
        return {"flags": left}
    groups = _groups()
    known = {name for each in groups.values() for name in each}
    found = {"command": [name for name in left if name not in known]}
    return found | {title: [name for name in own if name in left] for title, own in groups.items()}


def decides_results(name: str) -> bool:
    """Tells whether a flag is of what a run computes, not of where and how, or for how long more."""
    return name == "compute_dtype" or name not in {*_DEVICES, *_OUTPUT, "dry_run", "trials"}


def _groups() -> dict[str, list[str]]:
    """Returns the flags of a run by what they are about."""
    # Imported late, since they define flags of names that some commands have for their own.
    from mhd_jax.cli import data_flags
    from mhd_jax.cli import flags as run_flags

    run = (
        *("algorithm", "algorithms", "steps", "epochs", "batch_size", "public_batch_size", "seed"),
        *("seeds", "eval_every", "eval_batch_size", "metrics", "early_stopping", "patience"),
        *("continue_from", "dry_run"),
    )
    of_data = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(data_flags.__name__)]
    of_images = ("augmentation", "augment_public")
    of_labels = ("objectives", "contrastive_views", "label_sets")
    return {
        "run": [*run],
        "data": [name for name in (*of_data, *of_images, *of_labels) if name not in run],
        "graph": ["topology", *run_flags.TOPOLOGY_FLAGS],
        "model": ["model", "norm", "initialization"],
        "algorithm": ["adversaries", *run_flags.HYPERPARAMETER_HELP],
        "optimizer": ["optimizer", *run_flags.OPTIMIZER_HELP, "learning_rates"],
        "faults": [*run_flags.FAULT_HELP, *run_flags.BY_CLIENT_HELP, "on_nonfinite"],
        "devices": [*_DEVICES],
        "output": [*_OUTPUT],
    }


def _algorithms(found: dict[str, Any], arguments: Sequence[str]) -> list[str] | None:
    """Returns the algorithms that a command line names, or else the command's; None: all."""
    given = [re.fullmatch(r"--?algorithms?=(.*)", argument) for argument in arguments]
    texts = [match[1] for match in given if match]
    for name in ("algorithm", "algorithms"):
        if not texts and name in found:
            default = found[name].default
            texts = [default] if isinstance(default, str) else [",".join(default)]
    chosen = [name.strip() for text in texts[-1:] for name in text.split(",")]
    return chosen if chosen and all(name in ALGORITHMS for name in chosen) else None


def of_algorithm(name: str) -> str:
    """Returns an algorithm's paper and equations, its options as flags, and its source.

    Args:
      name: a key of `ALGORITHMS`, or users' own code.

    Raises:
      mhd.ConfigError: own code that cannot be loaded, or is no function.
    """
    from mhd_jax.cli import flags as run_flags

    made = run_flags.builder(name)
    build: Any = inspect.unwrap(made)
    module = inspect.getmodule(build)
    opening = (inspect.getdoc(build) or "").partition("\nArgs:")[0]
    parts = [
        f"{name}: {opening.strip()}",
        (getattr(module, "__doc__", None) or "").strip(),
    ]
    options: list[str] = []
    for option, default in hyperparameters(made).items():
        about = run_flags.HYPERPARAMETER_HELP.get(option, "")  # own arguments have none
        needed = default is inspect.Parameter.empty
        given = "(to be given)" if needed else f"(default: {default})"
        options += _columns(f"--{option}", f"{about} {given}".strip())
    return "\n\n".join(
        [*parts, "\n".join(["options:", *options]), f"source: {inspect.getsourcefile(build)}"]
    )


def _flag(flag: flags.Flag) -> str:
    """Returns the lines of a flag."""
    given = re.sub(r"^<[^>]*>: ", "", flag.help or "")  # without absl's form of choices
    text = " ".join(given.split())
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        text += f" One of {', '.join(choices)}."
    if flag.default_as_str and flag.default not in ("", []):
        text += f" (default: {flag.default_as_str.strip(chr(39))})"
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    return "\n".join(_columns(name, text))


def _columns(name: str, text: str) -> Iterator[str]:
    """Yields lines with a name on the left and its text beside it."""
    width = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    left = f"  {name}"
    if len(left) > _INDENT - 2:
        yield left
        left = ""
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=left.ljust(_INDENT),
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
