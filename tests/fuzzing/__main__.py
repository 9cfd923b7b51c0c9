"""Tries many inputs of every kind, and says how many were taken, refused, and what failed.

python -m tests.fuzzing --inputs=10000 --seed=0
python -m tests.fuzzing --kinds=edge_list_files --inputs=2000 --seed=7
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import sys
import time
import traceback

from absl import app, flags

from tests.fuzzing import every_kind, explore

_INPUTS = flags.DEFINE_integer("inputs", 10000, "Inputs of all kinds together.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Another seed tries others.")
_KINDS = flags.DEFINE_list("kinds", None, "Which kinds; by default all.")
_LIMIT = flags.DEFINE_float("limit", 120.0, "Seconds that one input may take.")


def main(argv):
    """Prints a line for each kind; its status is 1 where an input failed."""
    del argv
    kinds = every_kind()
    chosen = _KINDS.value or list(kinds)
    weights = {name: kinds[name].examples for name in chosen}
    print(f"{'kind':32} {'inputs':>7} {'taken':>7} {'refused':>7} {'seconds':>7}")
    total, failed = 0, []
    for name in chosen:
        count = max(1, round(_INPUTS.value * weights[name] / sum(weights.values())))
        started = time.perf_counter()
        tried = explore(kinds[name], count, _SEED.value, _LIMIT.value)
        seconds = time.perf_counter() - started
        both = tried.taken + tried.refused
        total += both
        print(f"{name:32} {both:7} {tried.taken:7} {tried.refused:7} {seconds:7.1f}", flush=True)
        if tried.failure is not None:
            failed.append(name)
            traceback.print_exception(tried.failure, file=sys.stdout)
            print(
                f"again: python -m tests.fuzzing --kinds={name} --inputs={count} --seed={_SEED.value}"
            )
    print(f"{total} inputs, {len(failed)} kinds with failures: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    app.run(main)
