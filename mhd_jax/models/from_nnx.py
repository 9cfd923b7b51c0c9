"""Flax NNX modules as backbones. NNX itself is imported late: most programs do without it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flax import linen as nn
from flax.core import FrozenDict

from mhd_jax.core.errors import ConfigError

if TYPE_CHECKING:
    from flax import nnx


def from_nnx(build: Callable[..., nnx.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Makes a client's backbone of an NNX module, as in `from_nnx(MyNet, 64)`.

    Each client draws its own module by `build(*args, **kwargs, rngs=...)`. The module's `nnx.Param`
    are the client's parameters; its other variables (e.g. `nnx.BatchStat`) are carried along as the
    client's statistics. In training mode each random stream gets a fresh key in every pass. The
    mode is set by `module.train()` and `module.eval()`, and by an argument `train` or
    `deterministic` of `__call__`; an argument `rngs` without a default gets a stream as well.
    Random numbers drawn in evaluation mode are always the same.

    Args:
      build: a class, or a named function, whose modules map a batch to an embedding [N, D].
      *args: positional arguments of `build`, hashable.
      **kwargs: keyword arguments of `build`, without `rngs`.

    Raises:
      ConfigError: a module that already has parameters, a lambda, or unsuitable arguments.
    """
    from flax import nnx

    from mhd_jax.models.nnx_backbone import FromNNX

    if isinstance(build, nnx.Module):
        name = type(build).__name__
        raise ConfigError(
            f"this {name} has drawn its parameters, but each client draws its own: give the class "
            f"and its arguments, as in mhd_jax.models.from_nnx({name}, ...)."
        )
    if not callable(build) or getattr(build, "__name__", "<lambda>") == "<lambda>":
        raise ConfigError(
            "from_nnx takes an NNX class or a function with a name, by which a run's settings tell "
            f"it from others, and its arguments; not {build!r}."
        )
    try:
        if isinstance(build, type):
            inspect.signature(build.__init__).bind(None, *args, **kwargs, rngs=None)  # type: ignore[misc]
        else:
            inspect.signature(build).bind(*args, **kwargs, rngs=None)
    except TypeError as error:
        raise ConfigError(
            f"{build.__name__} cannot be built from these arguments and `rngs`: {error}; give what it "
            f"needs, as in mhd_jax.models.from_nnx({build.__name__}, ...)."
        ) from error
    return FromNNX(build, args, FrozenDict(kwargs))


def loaded() -> Any:
    """Returns the module `flax.nnx`; None where nothing has imported it, so that nothing is of it."""
    return sys.modules.get("flax.nnx")


def as_backbone(model: Any) -> Any:
    """Returns an NNX class as `from_nnx` makes it a backbone, and anything else as it is.

    Raises:
      ConfigError: a class that needs more than `rngs`, or a module that already has parameters.
    """
    nnx = loaded()
    if nnx is None:
        return model
    is_nnx = isinstance(model, nnx.Module) or (
        isinstance(model, type) and issubclass(model, nnx.Module)
    )
    return from_nnx(model) if is_nnx else model


def builder(backbone: nn.Module) -> Callable[..., nnx.Module] | None:
    """Returns what builds the NNX module of a backbone; None for a backbone of another kind."""
    made = sys.modules.get("mhd_jax.models.nnx_backbone")
    return backbone.build if made is not None and isinstance(backbone, made.FromNNX) else None


def __getattr__(name: str) -> Any:
    """Returns the backbones' class, which models of earlier versions were saved by here."""
    if name != "FromNNX":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mhd_jax.models.nnx_backbone import FromNNX

    return FromNNX
