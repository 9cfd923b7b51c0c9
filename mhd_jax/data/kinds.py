"""The kind of samples (shapes and types): determined once for a data set, then required of others.

Integers are pixels, stored as uint8 and scaled to [0, 1] on the device, or they stay integers
(tokens, categories, counts), stored as int32. The stored type distinguishes the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.warned import warn
from mhd_jax.data.lazy_images import LazyImages

PyTree = Any
_MOST_CHANNELS = 4  # a first axis up to this length may be channels, also if H ≠ W


def as_arrays(given: Any, name: str) -> PyTree:
    """Converts given samples to an array or a dict of arrays; `name` is for the error."""
    try:
        if isinstance(given, Mapping):
            found = jax.tree.map(np.asarray, dict(given), is_leaf=_is_list)
            parts = named_leaves(dict(given), name)
        else:
            found = given if isinstance(given, LazyImages) else np.asarray(given)
            parts = [(name, given)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be arrays: {error}.") from error
    for part, values in parts:
        require_unmasked(values, part)
    if isinstance(found, dict):
        return found
    if found.shape == () and found.dtype == object:  # NumPy knows it for no array
        how = f"; give {name}.toarray()" if hasattr(given, "toarray") else ""
        raise ConfigError(f"{name} must be arrays, not of type {type(given).__name__}{how}.")
    return found


def require_unmasked(given: Any, name: str) -> None:
    """Raises `ConfigError` for an array of `numpy.ma` with masked entries, whose values are void."""
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ConfigError(
            f"{name} have {np.ma.count_masked(given):,} masked entries, which have no value; leave their "
            "samples out, or fill them in, as by numpy.ma.filled."
        )


def named_leaves(tree: PyTree, name: str) -> list[tuple[str, Any]]:
    """Returns the arrays of samples, or lists that become some, each with its name for errors."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=_is_list)
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def kept(inputs: PyTree, name: str, pixels: bool | None) -> PyTree:
    """Converts a data set's samples to the types in which they are stored.

    Args:
      inputs: an array, or a dict of arrays.
      name: the samples' name, for errors.
      pixels: whether integers are pixels. With None, a single array in 0 … 255 holds pixels, and in
        a dict only uint8 does; a warning says so if that is unlikely.

    Raises:
      ConfigError: values that are not numbers, not finite, or integers out of range; or rows of
        numbers that float32 does not tell apart.
    """
    several = isinstance(inputs, dict)
    leaves = named_leaves(inputs, name)
    if pixels and not any(leaf.dtype.kind in "iu" for _, leaf in leaves):
        raise ConfigError(
            f"pixels=True is for integers in 0 … 255, but {name} hold {shown(inputs)}; give "
            "integers, or leave pixels out."
        )

    def of_array(name: str, values: Any) -> Any:
        if values.dtype.kind not in "iu":
            stored = _as_floats(values, name)
            if values.ndim <= 2:
                _require_fine(values, name)
            return stored
        if pixels is False:
            return _as_integers(values, name)
        if pixels:
            return _as_pixels(values, name)
        if values.dtype != np.uint8 and (several or not _in_a_byte(values)):
            return _as_integers(values, name)
        if not isinstance(values, LazyImages) and (values.ndim <= 2 or values.max() <= 1):
            warn(
                f"{name} of shape {list(values.shape)} hold integers in {values.min()} … "
                f"{values.max()}, which are taken for pixels and divided by 255; say pixels=True "
                "if they are some, or pixels=False to keep integers."
            )
        return _as_pixels(values, name)

    found = [of_array(*leaf) for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(inputs), found)


def coarse(rows: np.ndarray) -> np.ndarray:
    """Returns which columns float32 rounds by over a hundredth of their deviation, ascending.

    Such are times since 1970 or long identifiers. A column of one value is none of them, nor is one
    whose values differ by rounding errors of float64.

    Args:
      rows: finite floating-point numbers [N, F].
    """
    if rows.dtype.itemsize <= 4 or not rows.size:
        return np.zeros(0, int)
    low, high = rows.min(axis=0), rows.max(axis=0)
    largest = np.maximum(high, -low)
    # Few columns need more: a deviation is at least their span / √2N, an error at most largest / 2²⁴.
    doubtful = np.flatnonzero(high - low < 100 * np.sqrt(2 * len(rows)) * largest / 2**24)
    values = rows[:, doubtful]
    deviation, lost = values.std(axis=0), (values - values.astype(np.float32)).std(axis=0)
    noise = 8 * np.finfo(np.float64).eps * largest[doubtful]
    return doubtful[(lost > deviation / 100) & (deviation > noise)]


def kind_of(inputs: PyTree) -> PyTree:
    """Returns the shape and type of one stored sample, for each array."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), inputs)


def kept_as(kind: PyTree, given: Any, name: str, others: str) -> PyTree:
    """Converts samples to the types in which a data set stores its own.

    Args:
      kind: the kind of the data set's samples, from `kind_of`.
      given: an array or a dict of arrays, of the types that `kept` takes.
      name, others: the names of these and of the data set's samples, for errors.

    Raises:
      ConfigError: samples of other shapes or types; the error names these and the expected ones.
    """
    inputs = as_arrays(given, name)
    leaves = named_leaves(inputs, name)
    structure: Any = jax.tree.structure(inputs)
    expected: Any = jax.tree.structure(kind)
    if structure != expected:
        raise ConfigError(_unlike(name, shown(inputs), others, _shown_kind(kind)))
    pairs = list(zip(leaves, jax.tree.leaves(kind), strict=True))
    if all(a.shape == one.shape for (_, a), one in pairs):
        raise ConfigError(
            f"{name} must have shape [N, ...], but are one sample; give it as x[None]."
        )
    if not all(
        a.shape and a.shape[1:] == one.shape and _same_family(a.dtype, one.dtype)
        for (_, a), one in pairs
    ):
        raise ConfigError(_unlike(name, shown(inputs), others, _shown_kind(kind)))
    if len({a.shape[0] for (_, a), _ in pairs}) > 1:
        raise ConfigError(f"the parts of {name} must hold equally many samples.")
    as_kept = {"uint8": _as_pixels, "int32": _as_integers, "float32": _as_floats}
    found = [as_kept[one.dtype.name](a, part) for (part, a), one in pairs]
    return jax.tree.unflatten(structure, found)


def require_alike(some: PyTree, others: PyTree, name: str, other_name: str) -> None:
    """Raises `ConfigError` unless both stored samples have the same shapes and types."""
    if kind_of(some) != kind_of(others):
        raise ConfigError(_unlike(name, shown(some), other_name, shown(others)))


def shown(inputs: PyTree) -> str:
    """Describes the types and shapes of samples in words."""
    return _shown_kind(kind_of(inputs)) or "no array"


def wrong_layout(shape: Sequence[int]) -> str | None:
    """Returns the likely error in the shape of one image, with a remedy; None if there is none.

    Images must be [height, width, channels]. A first axis much shorter than the others indicates
    that channels come first.
    """
    if len(shape) == 2:
        return (
            f"samples have shape {list(shape)}, without an axis of channels; images[..., None] "
            "adds one"
        )
    if len(shape) != 3:
        return None
    first, *sides = shape
    few = first <= _MOST_CHANNELS and max(sides) <= 4 * min(sides)
    if min(sides) > max(first, _MOST_CHANNELS) and (few or sides[0] == sides[1]):
        return (
            f"samples have shape {list(shape)}, channels first; numpy.moveaxis(images, 1, -1) puts "
            "them last"
        )
    return None


def _same_family(one: np.dtype, other: np.dtype) -> bool:
    """Returns whether both types are integers, or both are floating-point numbers."""
    return ({one.kind, other.kind} <= {"i", "u"}) or (_is_float(one) and _is_float(other))


def _is_float(dtype: np.dtype) -> bool:
    return bool(jax.dtypes.issubdtype(dtype, np.floating))  # which knows bfloat16, too


def _unlike(name: str, found: str, others: str, expected: str) -> str:
    return (
        f"{name} hold {found}, but {others} {expected}; make them alike (image_size resizes images "
        "of a folder, pixels=False keeps integers of arrays)."
    )


def _shown_kind(kind: PyTree) -> str:
    return ", ".join(
        f"{f'{path} ' if path else ''}{a.dtype} of shape {list(a.shape)}"
        for path, a in named_leaves(kind, "")
    )


def _in_a_byte(values: Any) -> bool:
    return not values.size or (values.min() >= 0 and values.max() <= 255)


def _as_pixels(values: Any, name: str) -> Any:
    if values.dtype == np.uint8:
        return values
    if not _in_a_byte(values):
        raise ConfigError(
            f"{name} must be pixels in 0 … 255, but span {values.min()} … {values.max()}; scale "
            "them, or keep integers by pixels=False."
        )
    return values.astype(np.uint8)


def _as_integers(values: Any, name: str) -> np.ndarray:
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise ConfigError(
            f"{name} holds integers beyond 32 bits; number them anew, or give float32."
        )
    return values.astype(np.int32)


def _require_fine(values: np.ndarray, name: str) -> None:
    """Raises `ConfigError` if float32, as which samples are stored, loses what is in a column."""
    found = coarse(values.reshape(len(values), -1))
    if found.size:
        column = f" in column {found[0]}" if values.ndim == 2 else ""
        raise ConfigError(
            f"{name} hold numbers{column} that differ by less than float32 tells at their size; subtract "
            "an offset, such as the smallest, from all of them, also from those of other splits."
        )


def _as_floats(values: Any, name: str) -> np.ndarray:
    if not _is_float(values.dtype):
        raise ConfigError(
            f"{name} must be numbers, not {values.dtype}; convert them, as by "
            "np.asarray(values, np.float32)."
        )
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32)
    if not np.isfinite(stored).all():
        raise ConfigError(
            f"{name} hold NaN or infinity, or numbers beyond float32; clean them first."
        )
    return stored
