"""Checks of users' own backbones and pretext tasks, mostly by shapes alone, before training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
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
from jax import Array
from jax.extend.core import Var

from mhd_jax.core.digests import is_pure, require_pure
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.warned import warn
from mhd_jax.data.kinds import wrong_layout
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


def require_backbone(backbone: nn.Module, samples: PyTree, num_outputs: int) -> None:
    """Raises `ConfigError` unless a module can be a client's backbone.

    The module must take `train`, return an embedding in both modes, draw no random numbers in
    evaluation mode and none with NumPy in any mode, and keep the shapes of its own variables. A
    module that ends in a linear layer with C outputs is refused as a classifier; an embedding of
    width C must end in an activation or a norm instead. If its rows are probabilities, a warning
    asks whether the module is a classifier that ends in a softmax.

    A further warning is about convolutions of images whose channels come first.

    Args:
      backbone: the user's module.
      samples: shapes of a few samples as models see them.
      num_outputs: C, of a head.
    """
    name = backbone_name(backbone)
    parameters = inspect.signature(type(backbone).__call__).parameters
    if "train" not in parameters and not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        raise ConfigError(f"{name}.__call__ must take `train: bool` beside the batch.")
    model = ClientModel(backbone, 1, num_outputs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    layout = wrong_layout(samples.shape[1:]) if hasattr(samples, "shape") else None
    params, stats = _initialised(model, key, samples, layout)
    try:
        outputs, _ = jax.eval_shape(model.apply, params, stats, samples)
    except InvalidRngError as error:
        raise ConfigError(
            f"{name} asks for random numbers with train=False; leave them to training."
        ) from error
    _require_sound_training(model, params, stats, samples, key)
    if layout is not None and _convolves_as_stored(model, params, stats, samples):
        warn(f"{name} convolves images [height, width, channels], but {layout}.")
    width = outputs.embeddings.shape[1]
    if width == num_outputs and _ends_linearly(model, params, stats, samples):
        raise ConfigError(
            f"{name} ends in a linear layer of width {width}, the number of classes, as a classifier "
            "does; return the hidden activation before it, for heads are added. (An embedding that "
            "is meant to be that wide may end in an activation or a norm.)"
        )
    if width == num_outputs and _are_probabilities(model, samples):
        warn(
            f"{name} returns {num_outputs} numbers, none below 0, that sum to 1, as many as there are "
            "classes: a classifier that ends in a softmax? Return the hidden activation before its "
            "last layer, for heads are added."
        )


def require_pretext(model: ClientModel, images: Any) -> None:
    """Raises `ConfigError` unless a user's pretext task fits its model and its own logits.

    It must be computed by jax.numpy, draw nothing with NumPy, and make an integer label for each
    row of its logits, in 0 … the number of these − 1, which is seen on random images.

    Args:
      model: the model of clients that have the task.
      images: the shape of a few images as models see them, [B, h, w, c].
    """
    task: Any = model.pretext
    name, key = f"the objective {task.name}", jax.random.key(0)

    def learned(key: Array, images: Array) -> tuple[Array, Array]:
        params, stats = model.init(key, images)
        inputs, labels = task.samples(key, images)
        outputs, _ = model.apply(params, stats, inputs, key)
        found = task.head.apply({"params": params["pretext"]}, outputs.embeddings)
        return task.logits(found), labels

    try:
        logits, labels = jax.eval_shape(learned, key, images)
        *rows, count = logits.shape
        fit = list(labels.shape) == rows and jnp.issubdtype(labels.dtype, jnp.integer)
        _, made = task.samples(key, jax.random.uniform(key, images.shape))
    except ConfigError:
        raise
    except Exception as error:  # users' functions may raise any exception
        raise ConfigError(
            f"{name} fails for images {list(images.shape)} ({in_a_line(error)}); its samples and logits "
            "must be functions of jax.numpy, and its images such as the model takes."
        ) from error
    if not fit:
        raise ConfigError(
            f"{name} must make one integer label for each row of its logits, but labels are "
            f"{labels.dtype} {list(labels.shape)}, and logits {list(logits.shape)}."
        )
    least, most = int(made.min()), int(made.max())
    if least < 0 or most >= count:
        raise ConfigError(
            f"{name} has {count} logits, for labels in 0 … {count - 1}, but makes labels in {least} … "
            f"{most}; give its head as many outputs as there are labels."
        )
    require_pure(name, learned, key, images)


def _initialised(
    model: ClientModel, key: Any, samples: PyTree, layout: str | None
) -> tuple[PyTree, PyTree]:
    """Returns shapes of parameters and other variables; errors explain unsuitable samples."""
    name = backbone_name(model.backbone)
    try:
        return jax.eval_shape(model.init, key, samples)
    except ConfigError:
        raise
    except Exception as error:  # the user's module may raise anything
        if wanted := _another_type(model, key, samples):
            raise ConfigError(f"{name} {wanted}.") from error
        if layout is not None:
            raise ConfigError(
                f"{name} cannot take these samples ({in_a_line(error)}): {layout}."
            ) from error
        raise


def _require_sound_training(
    model: ClientModel, params: PyTree, stats: PyTree, samples: PyTree, key: Any
) -> None:
    """Raises `ConfigError` if training mode needs other variables or is not a pure function."""
    name = backbone_name(model.backbone)
    try:
        _, after = jax.eval_shape(model.apply, params, stats, samples, key)
    except _OF_VARIABLES as error:
        raise ConfigError(
            f"{name} has variables with train=True that it has not with train=False "
            f"({in_a_line(error)}); make all of them in both modes."
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


def _require_alike(name: str, before: PyTree, after: PyTree) -> None:
    """Raises `ConfigError` if a pass in training mode changes shapes or types of variables."""

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


def _another_type(model: ClientModel, key: Any, samples: PyTree) -> str | None:
    """Returns a remedy if a backbone fails only because of the type of some sample arrays."""
    leaves = jax.tree.leaves_with_path(samples)
    for changed in [*([leaf] for leaf in leaves), leaves]:
        paths = [path for path, _ in changed]
        others = jax.tree.map_with_path(
            lambda path, a, paths=paths: _of_other_type(a) if path in paths else a, samples
        )
        try:
            jax.eval_shape(model.init, key, others)
        except Exception:
            continue
        (path, found), *_ = changed
        part = jax.tree_util.keystr(path)
        if not jnp.issubdtype(found.dtype, jnp.floating):
            return (
                f"takes floating-point numbers, but samples{part} are {found.dtype}; give float32"
            )
        keep = "mhd.data.arrays(..., pixels=False) keeps integers"
        if part:
            keep = (
                f"give that part as int32, or all of them by {keep.removesuffix(' keeps integers')}"
            )
        return f"takes integers, but samples{part} are {found.dtype}, as pixels are; {keep}"
    return None


def _convolves_as_stored(model: ClientModel, params: PyTree, stats: PyTree, samples: Any) -> bool:
    """Returns whether the first convolution uses the samples' last axis as channels."""
    closed = jax.make_jaxpr(model.apply)(params, stats, samples)
    for equation in _equations(closed.jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            channels = equation.params["dimension_numbers"].lhs_spec[1]
            return equation.invars[0].aval.shape[channels] == samples.shape[-1]
    return False


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a jaxpr and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # a closed jaxpr has one
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _of_other_type(a: Any) -> jax.ShapeDtypeStruct:
    other = jnp.int32 if jnp.issubdtype(a.dtype, jnp.floating) else jnp.float32
    return jax.ShapeDtypeStruct(a.shape, other)


def _are_probabilities(model: ClientModel, samples: PyTree) -> bool:
    """Returns whether embeddings of random samples, with random parameters, are probabilities."""

    @jax.jit
    def embeddings(key: jax.Array) -> Any:
        inputs = jax.tree.map(
            lambda a: jax.random.uniform(key, a.shape, maxval=2.0).astype(a.dtype), samples
        )
        params, stats = model.init(key, inputs)
        return model.apply(params, stats, inputs)[0].embeddings

    found = np.asarray(embeddings(jax.random.key(0)).astype(jnp.float32))
    return bool((found >= 0).all() and np.allclose(found.sum(axis=1), 1, atol=1e-2))


def _ends_linearly(model: ClientModel, params: PyTree, stats: PyTree, samples: PyTree) -> bool:
    """Returns whether the embedding is a matrix product or a convolution, plus at most a bias."""
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
        if len(inputs) != 1:  # e.g. a sum of two branches
            return False
        if equation.primitive.name not in _BIAS_AND_SHAPE:
            return equation.primitive.name in _LINEAR
        (last,) = inputs
    return False
