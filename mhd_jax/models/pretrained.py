"""Models that start from weights of the user's own, of which some may be frozen."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.files import expanded
from mhd_jax.core.types import PyTree
from mhd_jax.models.from_nnx import as_backbone, loaded

if TYPE_CHECKING:
    from flax import nnx

_PARTS = ("backbone", "heads", "pretext", "stats")


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with weights, as `pretrained` returns it.

    Attributes:
      model: a name, or a Flax module.
      weights: arrays of one client by flat names, like "backbone/Dense_0/kernel".
      frozen: patterns of names of parameters that never change.
    """

    model: str | nn.Module
    weights: Mapping[str, np.ndarray]
    frozen: tuple[str, ...]


def pretrained(
    model: str | nn.Module | type[nnx.Module],
    weights: PyTree | nnx.Module | str | os.PathLike[str],
    *,
    frozen: Sequence[str] = (),
    trainable: Sequence[str] | None = None,
) -> Pretrained:
    """Returns a model for `make_clients` whose clients start from the same weights.

    What has the name and the shape of the clients' parameters is taken; all else is drawn.

    Args:
      model: a model's name, an NNX class or a Linen module, as for `make_clients`.
      weights: parameters of the backbone as a tree, or an NNX module that holds them; those of a
        whole client, as `Client.params`; or the path of an ``.npz`` file as `Client.save` writes it,
        with names like "backbone/Dense_0/kernel".
      frozen: patterns of names of parameters that are not trained: `("backbone/*",)` trains the
        heads alone. Optimizers keep nothing of them.
      trainable: instead of `frozen`, patterns of the only parameters that change, as for adapters:
        `("*lora*", "heads/*")`.

    Raises:
      ConfigError: weights that cannot be read or hold no arrays, or `frozen` beside `trainable`.
    """
    if frozen and trainable is not None:
        raise ConfigError("give frozen or trainable, not both: each is what the other is not.")
    for patterns in (frozen, () if trainable is None else trainable):
        listed = isinstance(patterns, Collection) and not isinstance(patterns, str)
        if not listed or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError('frozen and trainable are lists of patterns, like ("backbone/*",).')
    kept = tuple(frozen) if trainable is None else ("!", *trainable)
    return Pretrained(as_backbone(model), _arrays(weights), kept)


def is_frozen(name: str, frozen: Sequence[str]) -> bool:
    """Returns whether a parameter is frozen by patterns; after "!" those of trainable ones come."""
    named = any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen)
    return named != _names_trainable(frozen)


def unmatched(frozen: Sequence[str], names: Iterable[str]) -> list[str]:
    """Returns the patterns that match none of the parameters' names.

    Parameters of learned maps between embeddings are not among the names; an algorithm adds them.
    """
    patterns = frozen[1:] if _names_trainable(frozen) else frozen
    known = [*names]
    return [
        pattern
        for pattern in patterns
        if not pattern.startswith("projections") and not fnmatch.filter(known, pattern)
    ]


def _names_trainable(frozen: Sequence[str]) -> bool:
    return bool(frozen) and frozen[0] == "!"


def _arrays(weights: PyTree | str | os.PathLike[str]) -> dict[str, np.ndarray]:
    if isinstance(weights, str | os.PathLike):
        path = expanded(weights)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except Exception as error:  # NumPy and zipfile raise many types
            raise ConfigError(
                f"the weights {str(path)!r} cannot be read ({in_a_line(error)}); give an .npz file "
                "as Client.save writes it."
            ) from error
    elif (nnx := loaded()) is not None and isinstance(weights, nnx.Module | nnx.State):
        found = _arrays(_of_nnx(weights))
    elif isinstance(weights, Mapping):
        tree = weights if set(weights) & set(_PARTS) else {"backbone": weights}
        paths = flatten_dict(dict(tree))
        found = {"/".join(map(str, path)): np.asarray(a) for path, a in paths.items()}
    else:
        raise ConfigError(
            "weights are a tree of arrays, an NNX module, or the path of an .npz file, not of type "
            f"{type(weights).__name__}."
        )
    if not found or not all(_are_numbers(a.dtype) for a in found.values()):
        raise ConfigError(
            "weights must be arrays of numbers, with names like backbone/Dense_0/kernel."
        )
    return found


def _are_numbers(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _of_nnx(module: nnx.Module | nnx.State) -> PyTree:
    """Returns the variables of an NNX module, or of its state, as those of a client's backbone."""
    from flax import nnx

    from mhd_jax.models.nnx_backbone import STATISTICS

    params, stats, _ = nnx.split_state(nnx.state(module), nnx.Param, STATISTICS, ...)
    return {
        "backbone": nnx.to_pure_dict(params),
        "stats": {"batch_stats": nnx.to_pure_dict(stats)},
    }
