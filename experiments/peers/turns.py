"""What one side of a race does: it gets ready, and works whenever it is told to.

Only the standard library is used, since a peer's interpreter has a peer's packages.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def take_turns(work: Callable[[], Any], versions: dict[str, str]) -> None:
    """Does `work` once, to warm up, and then once for each line of standard input.

    Writes lines of JSON: {"versions"} when it is ready, and {"seconds"} after each piece of work,
    which must have ended when `work` returns.
    """
    told, sys.stdout = sys.stdout, sys.stderr  # what packages print is not an answer
    work()
    print(json.dumps({"versions": versions}), file=told, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print(json.dumps({"seconds": time.perf_counter() - start}), file=told, flush=True)
