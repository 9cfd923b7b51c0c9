"""JAX's standard modes, which the package needs whatever modes the user has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from mhd_jax.core.warned import warn


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
        warn(
            "jax_disable_jit is passed over, as the clients' programs are always compiled. To look into "
            "a model, put jax.debug.print or jax.debug.breakpoint in it, or call it alone."
        )
    with (
        jax.disable_jit(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield
