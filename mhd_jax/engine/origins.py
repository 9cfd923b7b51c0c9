"""What a new run starts from: another run, its folder, or parameters of the user's own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mhd_jax.clients import ClientGroup, Clients
from mhd_jax.core import multihost
from mhd_jax.core.digests import array_digest
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import GroupState, PyTree, State
from mhd_jax.core.warned import warn
from mhd_jax.engine.loading import load
from mhd_jax.engine.result import Result
from mhd_jax.models.pretrained import unmatched
from mhd_jax.training import initial

_Found = list[dict[str, np.ndarray]]  # of each group its arrays [k, ...], by flat names


def starting_from(
    clients: Clients, init: Any, started: Sequence[GroupState]
) -> tuple[Clients, dict[str, Any] | None]:
    """Returns the clients with the arrays from which they start, and a record of their origin.

    Args:
      clients: the clients that train, without padding.
      init: a `Result`, a run folder, or parameters: a tree for each group, or one for all clients;
        None draws all parameters, but those of `mhd_jax.pretrained` models.
      started: the state of each group as the algorithm starts it, or its shapes.

    Raises:
      ConfigError: clients that have no counterpart, or nothing that fits.
    """
    if init is None and not any(group.weights for group in clients.groups):
        return clients, None
    known = [_of_one(initial.named(group.params, group.stats)) for group in started]
    origin: dict[str, Any] = {}
    found: _Found = [{} for _ in clients.groups]
    init = opened(init)
    if isinstance(init, Result):
        found = _of_result(init, clients)
        origin = {"algorithm": init.summary["algorithm"], "steps": init.summary["steps"]}
    elif init is not None:
        found = _of_trees(init, clients)
    if init is not None:
        origin |= _matching(found, known, clients, is_exact=not isinstance(init, Result))
    groups = []
    for group, own, shapes in zip(clients.groups, found, known, strict=True):
        _require_fitting(group, shapes)
        weights = {
            name: _repeated(a, len(group.members)) for name, a in (group.weights or {}).items()
        }
        groups.append(dataclasses.replace(group, start={**weights, **own} or None))
    return dataclasses.replace(clients, groups=tuple(groups)), origin or None


def opened(init: Any) -> Any:
    """Returns the result of a run folder, and anything else as it is."""
    return load(init) if isinstance(init, str | os.PathLike) else init


def _require_fitting(group: ClientGroup, shapes: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if no pretrained weight, or nothing of a pattern, is a client's."""
    weights = group.weights or {}
    fitting = [
        n for n in weights if n in shapes and initial.fits(n, weights[n].shape, shapes[n].shape)
    ]
    who = f"clients {', '.join(map(str, group.members[:10]))} ({group.described})"
    if weights and not fitting:
        given = ", ".join(f"{name} {list(a.shape)}" for name, a in list(weights.items())[:3])
        raise ConfigError(
            f"none of the pretrained weights ({given}) fits an array of {who}: {_few(shapes)}."
        )
    params = {name: shape for name, shape in shapes.items() if not name.startswith("stats/")}
    unused = unmatched(group.frozen, params)
    if unused:
        raise ConfigError(
            f"no parameter of {who} is named like {', '.join(map(repr, unused))}; frozen and "
            f"trainable are patterns of names of {_few(params)}."
        )


def decisive(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of an origin's record that decides a run's results, for its settings."""
    return {name: value for name, value in origin.items() if not isinstance(value, list)}


def _of_one(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes of one client's arrays."""
    return {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in arrays.items()}


def _repeated(array: Any, count: int) -> np.ndarray:
    array = np.asarray(array)
    return np.broadcast_to(array, (count, *array.shape))


def _of_result(result: Result, clients: Clients) -> _Found:
    """Returns the arrays of each group's clients in another run; one client's serve all."""
    if result.state is None:
        raise ConfigError("the run to start from has lost its checkpoints; start from another.")
    count = 1 if _is_one(result.state) else result.summary["num_clients"]
    if count not in (1, clients.num_clients):
        raise ConfigError(
            f"the run to start from has {count} clients, and this one {clients.num_clients}; make "
            "the two equal, or start from a run of one client."
        )
    trees = [multihost.fetch((group.params, group.stats)) for group in result.state.groups]

    def of_client(number: int) -> dict[str, Any]:
        number = 0 if count == 1 else number
        for group, tree in zip(result.state.groups, trees, strict=True):  # type: ignore[union-attr]
            if number in group.members:
                row = group.members.index(number)
                return {name: a[row] for name, a in initial.named(*tree).items()}
        raise AssertionError(number)

    return [_stacked([of_client(i) for i in group.members], group) for group in clients.groups]


def _is_one(state: State) -> bool:
    """Returns whether the state is of pooled training, in which one client has all data."""
    return len(state.groups) == 1 and len(state.groups[0].members) == 1


def _stacked(each: Sequence[Mapping[str, np.ndarray]], group: ClientGroup) -> dict[str, np.ndarray]:
    shapes = [{name: a.shape for name, a in own.items()} for own in each]
    for place, other in enumerate(shapes):
        if other != shapes[0]:
            raise ConfigError(
                f"clients {group.members[0]} and {group.members[place]} have one architecture here, "
                "but not in the run to start from; give them models as there."
            )
    return {name: np.stack([own[name] for own in each]) for name in each[0]}


def _of_trees(given: Any, clients: Clients) -> _Found:
    """Returns arrays [k, ...] of parameters given for each group, or once for all clients."""
    if isinstance(given, Mapping):
        given = [given] * len(clients.groups)
    if not isinstance(given, Sequence) or len(given) != len(clients.groups):
        raise ConfigError(
            "init is a Result, a run folder, or parameters: a tree for all clients, like client.params, "
            f"or a list of {len(clients.groups)} trees, one for each architecture."
        )
    if wrong := [tree for tree in given if not isinstance(tree, Mapping)]:
        raise ConfigError(
            f"parameters to start from are a tree for each architecture, a dict, not {wrong[0]!r}."
        )
    return [
        {name: np.asarray(a) for name, a in initial.named(multihost.fetch(tree), {}).items()}
        for tree in given
    ]


def _matching(
    found: _Found, known: Sequence[Mapping[str, Any]], clients: Clients, *, is_exact: bool
) -> dict[str, Any]:
    """Keeps of each group's arrays those that fit, with an axis of clients; returns what they are.

    With `is_exact`, an array of another shape than the clients' raises `ConfigError`.
    """
    taken: dict[str, list[str]] = {"taken": [], "drawn": [], "left_out": []}
    for group, own, shapes in zip(clients.groups, found, known, strict=True):
        count = len(group.members)
        unlike: list[str] = []
        for name, array in list(own.items()):
            expected = shapes.get(name)
            if expected is not None and initial.fits(name, array.shape, expected.shape):
                own[name] = array = _repeated(array, count)  # one for all of the group
            if (
                expected is None
                or array.shape[:1] != (count,)
                or not initial.fits(name, array.shape[1:], expected.shape)
            ):
                if is_exact and expected is not None:
                    raise ConfigError(
                        f"the parameters {name} of clients {', '.join(map(str, group.members[:10]))} "
                        f"must have shape {[count, *expected.shape]}, not {list(array.shape)}."
                    )
                del own[name]
                taken["left_out"].append(name)
                if expected is not None and name.startswith("backbone/"):
                    unlike.append(name)
        if not any(name.startswith("backbone/") for name in own):
            raise ConfigError(
                f"nothing to start from fits clients {', '.join(map(str, group.members[:10]))} "
                f"({group.described}): its arrays are {_few(shapes)}."
            )
        if unlike:
            warn(
                f"{_few({name: shapes[name] for name in unlike})} of clients "
                f"{', '.join(map(str, group.members[:10]))} ({group.described}) have other shapes in what they "
                "start from, and begin anew: what was learned above them no longer fits."
            )
        taken["taken"] += own
        taken["drawn"] += [
            name  # also of heads, of which fewer are taken
            for name, shape in shapes.items()
            if name not in own or own[name].shape[1:2] < shape.shape[:1]
        ]
    arrays = [own[name] for own in found for name in sorted(own)]
    lists = {what: list(dict.fromkeys(names)) for what, names in taken.items()}
    return {"digest": array_digest(*arrays), **lists}


def _few(shapes: Mapping[str, PyTree], most: int = 3) -> str:
    names = [f"{name} {list(shape.shape)}" for name, shape in list(shapes.items())[:most]]
    return ", ".join(names) + (" …" if len(shapes) > most else "")
