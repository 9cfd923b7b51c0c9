"""A client's network: a backbone that returns an embedding, and H linear heads on it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mhd_jax.core.digests import program_digest
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.label_sets import masked
from mhd_jax.core.types import Outputs
from mhd_jax.data.pretext import Pretext
from mhd_jax.models.from_nnx import builder
from mhd_jax.models.initialization import INITIALIZATIONS

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ClientModel:
    """The architecture of one client; parameters are passed as arguments.

    Attributes:
      backbone: a Flax module `(inputs [N, ...], train: bool) -> embeddings [N, D]`. It gets a key
        for every random stream that it uses in training mode. Its variable collections beside the
        parameters are the client's own state: a pass in training mode may change them, a pass in
        evaluation mode only reads them. Sown values are dropped.
      num_heads: H; head 0 is the main head.
      num_outputs: C, of each head: classes, or the numbers of a regression.
      compute_dtype: the type in which the backbone computes, e.g. "bfloat16"; parameters,
        statistics and heads keep their own type. None computes in the parameters' type.
      pretext: the task that the client learns from private images instead of labels, with its own
        head; None learns from labels.
      initialization: the initialisation of convolutions, dense layers and heads, a name in
        `INITIALIZATIONS`; None uses the backbone's own, and LeCun's for the heads.
      density: whether every head has one more output, the logarithm of a density ratio
        (`mhd_jax.exchange.density`): None is none; "stopped" and "flowing" say what becomes of its
        gradient at the embedding.
    """

    backbone: nn.Module
    num_heads: int
    num_outputs: int
    compute_dtype: str | None = None
    pretext: Pretext | None = None
    initialization: str | None = None
    density: str | None = None

    def init(self, key: jax.Array, inputs: PyTree) -> tuple[PyTree, PyTree]:
        """Draws the parameters of one client and makes its other variables.

        Args:
          key: the client's own key.
          inputs: a batch of samples, for its shapes.

        Returns:
          `(params, stats)`; `params["heads"]` holds `kernel` [H, D, C] and `bias` [H, C], and
          `params["pretext"]` the head of a pretext task; `params["density"]` holds `kernel` [H, D]
          and `bias` [H], zeros; `stats` are the backbone's other collections by name, such as
          normalisation statistics.

        Raises:
          ConfigError: the backbone does not return floating-point numbers [N, D].
        """
        backbone_key, head_key = jax.random.split(key)
        embeddings, variables = self.backbone.init_with_output(
            {"params": backbone_key, "dropout": backbone_key}, inputs, train=False
        )
        self._require_embedding(embeddings, inputs)
        width = embeddings.shape[1]
        # Fan-in is D for every head: draw the heads as one [D, H·C] layer, then separate them.
        outputs = self.num_heads * self.num_outputs
        kernel = nn.initializers.lecun_normal()(head_key, (width, outputs), embeddings.dtype)
        params = {
            "backbone": variables.get("params", {}),
            "heads": {"kernel": kernel, "bias": jnp.zeros(outputs, embeddings.dtype)},
        }
        if self.pretext is not None:
            own = self.pretext.head.init(jax.random.fold_in(head_key, 1), embeddings)
            params["pretext"] = own["params"]
        if self.initialization is not None:
            # The two keys of the split above equal folding in 0 and 1, so this folds in 2.
            params = INITIALIZATIONS[self.initialization](jax.random.fold_in(key, 2), params)
        heads = params["heads"]
        kernel = heads["kernel"].reshape(width, self.num_heads, self.num_outputs)
        params["heads"] = {
            "kernel": kernel.transpose(1, 0, 2),
            "bias": heads["bias"].reshape(self.num_heads, self.num_outputs),
        }
        if self.density is not None:
            params["density"] = {
                "kernel": jnp.zeros((self.num_heads, width), embeddings.dtype),
                "bias": jnp.zeros(self.num_heads, embeddings.dtype),
            }
        return params, {
            name: tree
            for name, tree in variables.items()
            if name != "params" and not _is_sown(tree)
        }

    def apply(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: PyTree,
        key: jax.Array | None = None,
        label_set: jax.Array | None = None,
    ) -> tuple[Outputs, PyTree]:
        """Returns one client's outputs on `inputs` [N, ...], and its statistics afterwards.

        With a `key` (for dropout, for example) the backbone runs in training mode; without one in
        evaluation mode, which leaves `stats` unchanged. For classes outside a `label_set`,
        bool [C], all heads' logits are `label_sets.IMPOSSIBLE`.
        """
        backbone, inputs = _cast((params["backbone"], inputs), self.compute_dtype)
        variables = {"params": backbone, **stats}
        if key is None:
            embeddings: Any = self.backbone.apply(variables, inputs, train=False)
        else:
            # Flax uses the "params" key for every stream that is not given here.
            rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}
            embeddings, updates = self.backbone.apply(
                variables, inputs, train=True, rngs=rngs, mutable=list(stats)
            )
            stats = {**stats, **updates}
        self._require_embedding(embeddings, inputs)
        heads = params["heads"]
        embeddings = embeddings.astype(heads["kernel"].dtype)
        logits = jnp.einsum("nd,hdc->nhc", embeddings, heads["kernel"]) + heads["bias"]
        density = None
        if self.density is not None:
            seen = embeddings if self.density == "flowing" else jax.lax.stop_gradient(embeddings)
            density = seen @ params["density"]["kernel"].T + params["density"]["bias"]
        return Outputs(masked(logits, label_set), embeddings, density), stats

    def has_modes(self, params: PyTree, stats: PyTree, inputs: PyTree) -> bool:
        """Returns whether a pass in training mode computes something else than one in evaluation mode.

        It does with statistics, with dropout, and with whatever else a backbone makes of `train`;
        arguments are as for `apply`, or their shapes.
        """
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, inputs))
        leaves, structure = jax.tree.flatten(shapes)
        return bool(jax.tree.leaves(stats)) or _has_modes(self, structure, tuple(leaves))

    def _require_embedding(self, embeddings: Any, inputs: PyTree) -> None:
        num_samples = jax.tree.leaves(inputs)[0].shape[0]
        shape = getattr(embeddings, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != num_samples:
            found = type(embeddings).__name__ if shape is None else f"shape {list(shape)}"
        elif not jnp.issubdtype(embeddings.dtype, jnp.floating):
            found = embeddings.dtype.name
        else:
            return
        raise ConfigError(
            f"{backbone_name(self.backbone)} must map a batch to an embedding of shape [N, D] "
            f"(here N = {num_samples}) in floating-point numbers, but it returned {found}; leave "
            "the classifier to the heads and return the last hidden activation."
        )


@functools.lru_cache(32)  # several parts of a step ask, and tracing a deep backbone takes a while
def _has_modes(model: ClientModel, structure: Any, shapes: tuple[Any, ...]) -> bool:
    def digest(trains: bool) -> str:
        def outputs(params: PyTree, inputs: PyTree, key: jax.Array) -> Outputs:
            return model.apply(params, {}, inputs, key if trains else None)[0]

        params, inputs = jax.tree.unflatten(structure, shapes)
        return program_digest(outputs, params, inputs, jax.random.key(0))

    return digest(trains=True) != digest(trains=False)


def backbone_name(backbone: nn.Module) -> str:
    """Returns the name of a backbone's class, or of its NNX module's class."""
    built = builder(backbone) or type(backbone)
    return built.__name__


def _is_sown(collection: PyTree) -> bool:
    """Returns whether a collection holds values of `Module.sow`, tuples that grow by pass."""
    nodes = jax.tree.leaves(collection, is_leaf=lambda node: isinstance(node, tuple))
    return any(isinstance(node, tuple) for node in nodes)


def _cast(tree: PyTree, dtype: str | None) -> PyTree:
    """Casts floating-point arrays to `dtype`; other arrays are unchanged."""
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )
