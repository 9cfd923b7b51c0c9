"""`FromNNX`: each pass rebuilds an NNX module from its client's parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

from mhd_jax.core.errors import ConfigError


class FromNNX(nn.Module):
    """A Linen module that holds an NNX module's variables, as `from_nnx` returns it.

    flax.nnx.bridge.ToLinen would draw the parameters anew in every pass, only to replace them, and
    would give random streams without their own key the same key in every step.
    """

    build: Callable[..., nnx.Module]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> Any:
        """Returns the module's outputs; training mode also updates its statistics."""
        if self.is_initializing():
            module = _built(self.build, self.args, self.kwargs, nnx.Rngs(self.make_rng("params")))
            self._keep(module, "params", nnx.Param)
            self._keep(module, "batch_stats", STATISTICS)
        else:
            module = self.module_with(
                self.variables.get("params", {}),
                self.variables.get("batch_stats", {}),
                lambda: self._key(train),
            )
        module.train() if train else module.eval()
        taken = inspect.signature(type(module).__call__).parameters
        modes = {"train": train, "deterministic": not train}
        options: dict[str, Any] = {name: modes[name] for name in modes if name in taken}
        if "rngs" in taken and taken["rngs"].default is inspect.Parameter.empty:
            options["rngs"] = nnx.Rngs(self._key(train))
        outputs = module(inputs, **options)
        if train and self.is_mutable_collection("batch_stats"):
            self._keep(module, "batch_stats", STATISTICS)
        return outputs

    @nn.nowrap
    def module_with(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        new_key: Callable[[], jax.Array] = lambda: jax.random.key(0),
    ) -> nnx.Module:
        """Returns the NNX module with these variables; `new_key()` seeds each random stream."""
        graph, shapes = _structure(self.build, self.args, self.kwargs)
        values = flatten_dict({**params}) | flatten_dict({**stats})

        def value(path: tuple[Any, ...], leaf: Any) -> Any:
            if isinstance(leaf, nnx.RngCount):
                return leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))
            if isinstance(leaf, nnx.RngKey):
                return leaf.replace(_of_shape(new_key(), leaf.shape))
            return leaf.replace(values[path]) if isinstance(leaf, nnx.Variable) else values[path]

        return nnx.merge(graph, nnx.map_state(value, shapes))

    def __repr__(self) -> str:
        shown = [*map(_shown, self.args), *(f"{k}={_shown(v)}" for k, v in self.kwargs.items())]
        return f"{self.build.__name__}({', '.join(shown)})"

    def _key(self, train: bool) -> jax.Array:
        return self.make_rng("dropout") if train else jax.random.key(0)

    def _keep(self, module: nnx.Module, collection: str, kinds: Any) -> None:
        for name, tree in nnx.to_pure_dict(nnx.state(module, kinds)).items():
            self.put_variable(collection, name, tree)


STATISTICS = nnx.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngState))


@functools.cache
def _structure(
    build: Callable[..., nnx.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a module's graph without its arrays, and the arrays' shapes."""
    return nnx.split(nnx.eval_shape(lambda: _built(build, args, kwargs, nnx.Rngs(0))))


def _built(
    build: Callable[..., nnx.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rngs: nnx.Rngs,
) -> nnx.Module:
    module = build(*args, **kwargs, rngs=rngs)
    if not isinstance(module, nnx.Module) or not callable(module):
        raise ConfigError(
            f"{build.__name__} must build an NNX module that can be called with a batch, but it "
            f"built {type(module).__name__}."
        )
    return module


def _shown(value: Any) -> str:
    return getattr(value, "__name__", repr(value))  # a function's address differs between processes


def _of_shape(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Splits a key into an array of keys: some modules stack the streams of their layers."""
    return jax.random.split(key, shape) if shape else key
