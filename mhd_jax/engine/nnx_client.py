"""`NNXClient`: one client taken out of a run, as a module of Flax NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import bridge

from mhd_jax.engine.client import Client
from mhd_jax.models.nnx_backbone import FromNNX


class NNXClient(nnx.Module):
    """A client as an NNX module: the backbone, and its heads as one `nnx.Param` each.

    Attributes:
      backbone: the client's own NNX module, or a Linen one by `flax.nnx.bridge.ToNNX`.
      kernel, bias: of the heads, [H, D, C] and [H, C].
    """

    def __init__(self, client: Client):
        """Copies the client's parameters."""
        backbone = client.model.backbone
        values, stats = client.params["backbone"], client.stats
        if isinstance(backbone, FromNNX):
            self.backbone = backbone.module_with(values, stats.get("batch_stats", {}))
        else:
            self.backbone = bridge.ToNNX(backbone, rngs=nnx.Rngs(0))
            variables = jax.tree.map(jnp.asarray, {"params": values, **stats})
            for name, entry in bridge.variables.linen_vars_to_nnx_attrs(variables).items():
                setattr(self.backbone, name, entry)
        self.kernel = nnx.Param(jnp.asarray(client.params["heads"]["kernel"]))
        self.bias = nnx.Param(jnp.asarray(client.params["heads"]["bias"]))

    def __call__(self, inputs: Any, head: int | None = 0) -> jax.Array:
        """Returns logits [N, C] of a head on prepared samples; of all heads, [N, H, C], for None."""
        embeddings = self.backbone(inputs)
        logits = jnp.einsum("nd,hdc->nhc", embeddings, self.kernel[...]) + self.bias[...]
        return logits if head is None else logits[:, head]
