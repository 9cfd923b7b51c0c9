"""How a binary starts and ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

import mhd_jax as mhd

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    str(pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "mhd_jax"),
    "Folder that keeps compiled programs from start to start; empty keeps none.",
)


def run(main: Callable[[], None]) -> None:
    """Runs a binary: parses flags, and turns what can go wrong into one sentence and a status.

    Exit status: 1 for an unknown flag, 2 for settings that cannot work, 3 for a run that
    diverged, 130 for one that was interrupted.
    """

    def wrapped(argv: Sequence[str]) -> None:
        _configure_jax()
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax tells every detail of a save
        try:
            if len(argv) > 1:
                raise mhd.ConfigError(
                    f"unexpected argument {argv[1]!r}; flags are written --name=value."
                )
            main()
        except mhd.ConfigError as error:
            _exit(f"error: {error}", 2)
        except mhd.DivergedError as error:
            _exit(f"error: {error}", 3)
        except mhd.InterruptedRun as stop:
            _exit(str(stop), 130)
        except KeyboardInterrupt:
            _exit("interrupted", 130)

    app.run(wrapped)


def _configure_jax() -> None:
    """One device for each CPU core, and compiled programs kept on disk.

    XLA's CPU backend computes a convolution on one core; as devices, cores share the clients.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # where JAX has started, its devices stay
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _exit(sentence: str, status: int) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(status)
