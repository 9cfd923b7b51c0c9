"""Ends a process if another process of its run has died, instead of waiting for that process.

A collective or a save that misses a process waits for minutes. Process 0 holds a connection to
every other process; the operating system closes it when either end dies, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

import mhd_jax as mhd
from mhd_jax.core.errors import in_a_line

STATUS = 4
_FAREWELL = b"."
_PATIENCE = 60  # seconds to connect


@contextlib.contextmanager
def watching(host: str | None) -> Iterator[None]:
    """Watches the other processes of this run until all reach the end of the block.

    Args:
      host: the address at which the others reach process 0; None is its host name.
    """
    try:
        connections = _connect(host)
    except OSError as error:
        raise mhd.ConfigError(
            f"the processes of this run do not reach each other ({in_a_line(error)}); "
            "--coordinator_address is HOST:PORT of process 0, as the others reach it."
        ) from error
    for connection in connections:
        threading.Thread(target=_wait_for_end, args=(connection,), daemon=True).start()

    def farewell() -> None:
        for connection in connections:
            connection.sendall(_FAREWELL)

    try:
        yield
    except (mhd.DivergedError, mhd.InterruptedRun):
        farewell()
        raise
    farewell()


def _connect(host: str | None) -> list[socket.socket]:
    main = jax.process_index() == 0
    listener = socket.create_server(("", 0)) if main else None
    address = f"{host or socket.gethostname()}:{listener.getsockname()[1]}" if listener else ""
    text = np.frombuffer(address.ljust(256).encode()[:256], np.uint8)
    name, _, port = multihost_utils.broadcast_one_to_all(text).tobytes().decode().rpartition(":")
    if listener is None:
        connections = [socket.create_connection((name, int(port)), timeout=_PATIENCE)]
    else:
        listener.settimeout(_PATIENCE)
        connections = [listener.accept()[0] for _ in range(jax.process_count() - 1)]
        listener.close()
    for connection in connections:
        connection.settimeout(None)
    return connections


def _wait_for_end(connection: socket.socket) -> None:
    try:
        last = connection.recv(1)
    except OSError:
        last = b""
    if last != _FAREWELL:
        end_alone()


def end_alone() -> None:
    """Ends this process at once, as an orderly exit would wait for the lost processes."""
    _end(
        "another process of this run has ended, and the others cannot go on without it; "
        "what was saved is in the workdir. Start all of them again with the same command to resume."
    )


def end_unmet(seconds: float) -> None:
    """Ends this process, as the others have not connected within `seconds`."""
    _end(
        f"the other processes of this run have not come in {seconds:.0f} s; start all of them, or, "
        "for a run on this one alone, one task (srun -n 1) or no --coordinator_address."
    )


def _end(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(STATUS)
