"""JAX's standard modes and devices, which the package needs whatever modes the user has set."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import jax

from mhd_jax.core.errors import ConfigError, in_a_line


@contextlib.contextmanager
def standard() -> Iterator[None]:
    """Sets JAX's standard modes: types are promoted, transfers allowed, and programs compiled.

    A user may set strict modes (`jax_numpy_rank_promotion`, `jax_numpy_dtype_promotion`,
    `jax_transfer_guard`), in which Flax, Optax and Orbax do not promise to run, or turn compilation
    off (`jax_disable_jit`), without which all clients' programs cannot be built. Functions of this
    library are decorated with `standard`; models and callbacks of users that they call run in the
    standard modes too.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        warnings.warn(
            "jax_disable_jit is passed over, as the clients' programs are always compiled. To look into "
            "a model, put jax.debug.print or jax.debug.breakpoint in it, or call it alone.",
            stacklevel=3,
        )
    with (
        jax.disable_jit(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield


def require_devices() -> None:
    """Starts JAX if it has not started; raises `ConfigError` if JAX finds no device."""
    try:
        jax.devices()
    except Exception as error:  # some platforms raise an AssertionError
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not asked:
            raise ConfigError(f"JAX finds no device to compute on ({in_a_line(error)}).") from error
        raise ConfigError(
            f"JAX_PLATFORMS asks for {asked!r}, on which JAX cannot start here "
            f"({in_a_line(error)}); unset it, or install what that platform needs."
        ) from error
