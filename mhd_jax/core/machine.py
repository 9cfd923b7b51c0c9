"""The devices for which programs are made: those on which JAX runs, or described ones for a plan."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from mhd_jax.core.errors import ConfigError, in_a_line


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one platform.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      devices: all devices, of all processes. A compiler may know devices that are not here.
      bytes_each: the memory of one device; None asks the devices.
    """

    platform: str
    devices: tuple[Any, ...]
    bytes_each: int | None = None

    @property
    def processes(self) -> list[int]:
        """The numbers of the processes that have the devices."""
        return sorted({device.process_index for device in self.devices})


_described: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("machine", default=None)


def machine() -> Machine:
    """Returns the machine for which programs are made."""
    return _described.get() or Machine(jax.default_backend(), tuple(jax.devices()))


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


@contextlib.contextmanager
def prepared_for(described: Machine) -> Iterator[None]:
    """Makes the programs of the with block for another machine; they are compiled, never run."""
    token = _described.set(described)
    try:
        yield
    finally:
        _described.reset(token)
