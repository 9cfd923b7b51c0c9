"""Handling of Ctrl-C and SIGTERM: a run saves before it stops, or returns what there is."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class StopRequests:
    """Whether a stop was requested, by which signal, and whether it has been answered."""

    received: int = 0
    answered: bool = False


@contextlib.contextmanager
def stop_requests(terminates: bool) -> Iterator[StopRequests]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second one interrupts at once.

    A request that the block has not answered, because it came in the last steps of runs that are
    saved, is raised again for the previous handlers.

    Args:
      terminates: whether SIGTERM ends the process as usual: nothing is saved that could be resumed.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def handle(signum: int, frame: Any) -> None:
        if requests.received:
            raise KeyboardInterrupt
        requests.received = signum

    signals = (signal.SIGINT,) if terminates else (signal.SIGINT, signal.SIGTERM)
    previous = {s: signal.signal(s, handle) for s in signals}
    try:
        yield requests
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if requests.received and not requests.answered:
        signal.raise_signal(requests.received)
