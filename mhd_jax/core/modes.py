"""JAX as this package and the libraries under it need it, whatever its user has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from mhd_jax.core.errors import ConfigError, in_a_line


@contextlib.contextmanager
def standard() -> Iterator[None]:
    """JAX's standard modes: arrays of unlike types and ranks combine, and arrays move by themselves.

    Its strict modes (`jax_numpy_rank_promotion`, `jax_numpy_dtype_promotion`,
    `jax_transfer_guard`) are for one's own code: Flax, Optax and Orbax do not promise to run in
    them. The library's functions are decorated with this; a user's own models and callbacks that
    they call run in the standard modes too.
    """
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield


def require_devices() -> None:
    """Starts JAX, where it has not started; `ConfigError` where it has no device to start on."""
    try:
        jax.devices()
    except Exception as error:  # for some platforms it is an assertion that fails
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not asked:
            raise ConfigError(f"JAX finds no device to compute on ({in_a_line(error)}).") from error
        raise ConfigError(
            f"JAX_PLATFORMS asks for {asked!r}, on which JAX cannot start here "
            f"({in_a_line(error)}); unset it, or install what that platform needs."
        ) from error
