"""What a user's own backbone must be, found out from shapes before anything is trained."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import (
    InvalidRngError,
    ModifyScopeVariableError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeVariableNotFoundError,
)
from jax.extend.core import Var

from mhd_jax.errors import ConfigError, first_line
from mhd_jax.fingerprint import is_pure
from mhd_jax.models.client_model import ClientModel, backbone_name

PyTree = Any
_BIAS_AND_SHAPE = (
    "add",
    "add_any",
    "broadcast_in_dim",
    "convert_element_type",
    "reshape",
    "squeeze",
)
_OF_VARIABLES = (
    ModifyScopeVariableError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeVariableNotFoundError,
)
_LINEAR = ("conv_general_dilated", "dot_general")


def require_backbone(backbone: nn.Module, samples: PyTree, num_classes: int) -> None:
    """Raises `ConfigError` unless a module can be clients' backbone.

    It must take `train`, return an embedding in both modes, draw no random numbers in evaluation
    and none by NumPy at all, and keep the shapes of its own variables. One that ends in a linear layer as wide as there are classes is taken
    for a classifier; an embedding of that width must end otherwise, in an activation or a norm. Warns of
    one of that width whose rows are probabilities: a classifier that ends in a softmax.

    Args:
      backbone: the user's module.
      samples: shapes of a few samples as it sees them.
      num_classes: C.
    """
    name = backbone_name(backbone)
    parameters = inspect.signature(type(backbone).__call__).parameters
    if "train" not in parameters and not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        raise ConfigError(f"{name}.__call__ must take `train: bool` beside the batch.")
    model = ClientModel(backbone, 1, num_classes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = jax.eval_shape(model.init, key, samples)
    try:
        outputs, _ = jax.eval_shape(model.apply, params, stats, samples)
    except InvalidRngError as error:
        raise ConfigError(
            f"{name} asks for random numbers with train=False; leave them to training."
        ) from error
    try:
        _, after = jax.eval_shape(model.apply, params, stats, samples, key)
    except _OF_VARIABLES as error:
        raise ConfigError(
            f"{name} has variables with train=True that it has not with train=False "
            f"({first_line(error)}); make all of them in both modes."
        ) from error
    _require_alike(name, stats, after)
    for what, function, arguments in (
        ("parameters", model.init, (key, samples)),
        ("outputs", model.apply, (params, stats, samples, key)),
    ):
        if not is_pure(function, *arguments):
            raise ConfigError(
                f"{name} has other {what} each time it is called, and what it drew would be frozen for "
                "the whole run and all clients: draw from self.make_rng, or in initialisers from their "
                "key, not with NumPy or Python."
            )
    width = outputs.embeddings.shape[1]
    if width == num_classes and _ends_linearly(model, params, stats, samples):
        raise ConfigError(
            f"{name} ends in a linear layer of width {width}, the number of classes, as a classifier "
            "does; return the hidden activation before it, for heads are added. (An embedding that "
            "is meant to be that wide may end in an activation or a norm.)"
        )
    if width == num_classes and _are_probabilities(model, samples):
        warnings.warn(
            f"{name} returns {num_classes} numbers, none below 0, that sum to 1, as many as there are "
            "classes: a classifier that ends in a softmax? Return the hidden activation before its "
            "last layer, for heads are added.",
            stacklevel=2,
        )


def _require_alike(name: str, before: PyTree, after: PyTree) -> None:
    """Raises `ConfigError` unless a pass in training mode leaves the other variables' shapes alone."""

    def shapes(tree: PyTree) -> PyTree:
        return {
            jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
            for path, leaf in jax.tree.leaves_with_path(tree)
        }

    old, new = shapes(before), shapes(after)
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            raise ConfigError(
                f"{name} must keep the shapes and types of its variables, but {path} changes in a "
                "pass with train=True; make all of them in both modes, with one shape."
            )
        if not jnp.issubdtype(old[path][1], jnp.number) and old[path][1] != jnp.bool_:
            raise ConfigError(
                f"{name} must keep numbers in its variables, but {path} holds {old[path][1]}; random "
                "keys come from self.make_rng."
            )


def _are_probabilities(model: ClientModel, samples: PyTree) -> bool:
    """Whether the embedding of random samples, by random parameters, is a distribution."""

    @jax.jit
    def embeddings(key: jax.Array) -> Any:
        inputs = jax.tree.map(
            lambda a: jax.random.uniform(key, a.shape, maxval=2.0).astype(a.dtype), samples
        )
        params, stats = model.init(key, inputs)
        return model.apply(params, stats, inputs)[0].embeddings

    said = np.asarray(embeddings(jax.random.key(0)).astype(jnp.float32))
    return bool((said >= 0).all() and np.allclose(said.sum(axis=1), 1, atol=1e-2))


def _ends_linearly(model: ClientModel, params: PyTree, stats: PyTree, samples: PyTree) -> bool:
    """Whether the embedding is a matrix product or a convolution, with at most a bias added."""
    jaxpr = jax.make_jaxpr(lambda x, p, s: model.apply(p, s, x)[0].embeddings)(
        samples, params, stats
    ).jaxpr
    of_samples = set(jaxpr.invars[: len(jax.tree.leaves(samples))])
    made_by = {}
    for equation in jaxpr.eqns:
        made_by.update(dict.fromkeys(equation.outvars, equation))
        if any(isinstance(v, Var) and v in of_samples for v in equation.invars):
            of_samples.update(equation.outvars)
    (last,) = jaxpr.outvars
    while last in made_by:
        equation = made_by[last]
        inputs = [v for v in equation.invars if isinstance(v, Var) and v in of_samples]
        if len(inputs) != 1:  # such as a sum of two branches
            return False
        if equation.primitive.name not in _BIAS_AND_SHAPE:
            return equation.primitive.name in _LINEAR
        (last,) = inputs
    return False
