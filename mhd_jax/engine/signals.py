"""Handling of Ctrl-C and SIGTERM: a run with a folder saves before it stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests(active: bool) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second one interrupts at once.

    Yields a function that returns whether a stop was requested. A request on which the block did
    not act, because it came in the last steps, is raised again for the previous handlers.
    """
    received: list[int] = []

    def requested() -> bool:
        return bool(received)

    if not active or threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def handle(signum: int, frame: Any) -> None:
        received.append(signum)
        if len(received) > 1:
            raise KeyboardInterrupt

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if received:
        signal.raise_signal(received[0])
