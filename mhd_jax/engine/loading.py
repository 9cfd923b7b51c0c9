"""`load`: the result of a finished run from its folder, without its data and its clients.

The folder keeps what the arrays of a checkpoint do not say in `models.pickle`: each architecture,
how samples are prepared, and the algorithm's `predict`. Each of these is pickled on its own, so that
one which cannot be read back is replaced, not the others.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from mhd_jax.core import modes
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.files import folder_here, written_whole
from mhd_jax.core.tasks import CLASSES, Task
from mhd_jax.core.types import GroupState, PyTree, State
from mhd_jax.engine.answers import Answers, portable
from mhd_jax.engine.result import Result
from mhd_jax.models.client_model import ClientModel, backbone_name
from mhd_jax.models.from_nnx import as_backbone
from mhd_jax.runs.checkpoints import KEEP_LAST, Checkpoints, best
from mhd_jax.runs.finished import read_run
from mhd_jax.training import groups

NAME = "models.pickle"


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """One architecture: its name, who has it, its module and pretext task if they can be pickled."""

    name: str
    members: tuple[int, ...]
    backbone: bytes | None
    rest: dict[str, Any]  # the other fields of `ClientModel`
    pretext: bytes | None = None


@dataclasses.dataclass(frozen=True)
class _Kept:
    architectures: tuple[_Architecture, ...]
    predict: bytes | None
    answers: dict[str, Any]  # the fields of `Answers` beside `predict`
    predicts_otherwise: bool = False  # than the library's algorithms
    task: Task = CLASSES


def keep_models(folder: pathlib.Path, state: State, answers: Answers) -> None:
    """Writes into a run's folder what `load` needs beside the checkpoint's arrays."""
    answers = answers.on_one_device()
    kept = _Kept(
        tuple(_architecture(group) for group in state.groups),
        _pickled(answers.predict),
        {name: value for name, value in vars(answers).items() if name != "predict"},
        answers.predict is not groups.predict,
        state.task,
    )
    with written_whole(folder / NAME) as partial:
        partial.write_bytes(pickle.dumps(kept))


@modes.standard()
def load(
    path: str | os.PathLike[str],
    models: Mapping[str, Any] | None = None,
    predict: Callable[[State, PyTree], Array] | None = None,
) -> Result:
    """Returns the result of a finished run from its folder, without building its clients again.

    It reads `models.pickle`, and a pickle can run code: load folders of people whom you trust.

    Args:
      path: a run folder.
      models: Flax modules or NNX classes by the architecture's name in `summary["per_client"]`, for
        those that cannot be read back: defined in a notebook, for example, or in a script that has
        changed.
      predict: the algorithm's `predict`, likewise, where that is not the library's.

    Returns:
      The result. Its states have no optimizers, and nothing in `extra`. If the checkpoints are gone,
      it has no state.

    Raises:
      ConfigError: the folder holds no finished run, its checkpoint is damaged, or its models or
        its `predict` are defined where they cannot be found.
    """
    run = read_run(folder_here(path, "the run folder"))
    checkpoints = Checkpoints(run.path / "checkpoints", KEEP_LAST)
    summary, history = dict(run.summary), [dict(record) for record in run.history]
    steps = checkpoints.steps
    if summary["steps"] not in steps or not (run.path / NAME).exists():
        return Result(summary, history, None, summary["steps"], folder=run.path)
    kept = _read(run.path / NAME)
    predict = predict or _unpickled(kept.predict)
    if predict is None and kept.predicts_otherwise:
        raise ConfigError(
            "the algorithm's own predict cannot be read back, because it is defined inside of a function "
            "or has moved; give it: mhd.load(path, predict=...)."
        )
    answers = Answers(predict=predict or groups.predict, **kept.answers)
    architectures = _named(kept.architectures, models or {})

    def state_at(step: int) -> State:
        return portable(_state(checkpoints.arrays(step)["state"], kept, architectures))

    last, chosen = state_at(summary["steps"]), best(checkpoints.scores())
    if chosen is None:
        best_state = None
    else:
        best_state = last if chosen == summary["steps"] else state_at(chosen)
    return Result(summary, history, last, summary["steps"], best_state, answers, run.path)


def _architecture(group: GroupState) -> _Architecture:
    model: Any = group.model
    rest = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init}
    backbone, pretext = rest.pop("backbone"), rest.pop("pretext")
    return _Architecture(
        *(backbone_name(backbone).lower(), tuple(group.members), _pickled(backbone), rest),
        _pickled(pretext),
    )


def _pickled(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value)
    except Exception:  # pickle raises errors of many types
        return None


def _unpickled(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return pickle.loads(value)
    except Exception:  # a class is not where it was, or has other fields
        return None


def _read(path: pathlib.Path) -> _Kept:
    try:
        kept = pickle.loads(path.read_bytes())
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be read ({in_a_line(error)}); it was written by another version of "
            "mhd_jax."
        ) from error
    assert isinstance(kept, _Kept)
    return kept


def _named(kept: Sequence[_Architecture], given: Mapping[str, Any]) -> list[ClientModel]:
    """Returns each architecture, from what is given or from what was pickled."""
    unknown = sorted(given.keys() - {each.name for each in kept})
    if unknown:
        raise ConfigError(
            f"there is no model {', '.join(unknown)} in this run, whose models are "
            f"{', '.join(each.name for each in kept)}."
        )
    found = []
    for each in kept:
        backbone = as_backbone(given.get(each.name, _unpickled(each.backbone)))
        if backbone is None:
            raise ConfigError(
                f"the model {each.name} cannot be read back, because it is defined in a notebook or "
                f"has moved; give it: mhd.load(path, models={{{each.name!r}: ...}})."
            )
        # Predictions need no pretext task. Folders of older versions have it in `rest`.
        found.append(ClientModel(backbone, **{"pretext": _unpickled(each.pretext), **each.rest}))
    return found


def _state(arrays: PyTree, kept: _Kept, models: Sequence[ClientModel]) -> State:
    """Returns the state with a checkpoint's arrays, by name, of these architectures."""
    of_models = tuple(
        GroupState(
            params=group["params"],
            stats=group["stats"],
            opt_state=(),
            model=model,
            optimizer=None,  # as in a result that was pickled
            members=each.members,
        )
        for group, each, model in zip(arrays["groups"], kept.architectures, models, strict=True)
    )
    step = jnp.asarray(arrays["step"])
    return State(
        *(step, arrays["key"], arrays["client_ids"], of_models, arrays.get("label_sets")),
        task=kept.task,
    )
