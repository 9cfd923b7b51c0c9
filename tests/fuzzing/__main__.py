"""Tries many inputs of every kind, and says how many were taken, refused, and what failed.

python -m tests.fuzzing --inputs=10000 --seed=0
python -m tests.fuzzing --kinds=edge_list_files --inputs=2000 --seed=7
"""

import argparse  # absl's flags are those of the binaries that are tried
import sys
import time
import traceback

import tests.conftest  # noqa: F401  # which says how programs are compiled, before JAX starts
from tests.fuzzing import every_kind, explore


def main() -> bool:
    """Prints a line for each kind; whether an input failed."""
    kinds = every_kind()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="another one tries others")
    parser.add_argument("--kinds", default=",".join(kinds), help="which, joined by commas")
    parser.add_argument("--limit", type=float, default=120, help="seconds that one input may take")
    given = parser.parse_args()
    chosen = given.kinds.split(",")
    if unknown := set(chosen) - set(kinds):
        parser.error(f"unknown kinds {', '.join(unknown)}; choose among {', '.join(kinds)}")
    weights = {name: kinds[name].examples for name in chosen}
    print(f"{'kind':32} {'inputs':>7} {'taken':>7} {'refused':>7} {'seconds':>7}")
    total, failed = 0, []
    for name in chosen:
        count = max(1, round(given.inputs * weights[name] / sum(weights.values())))
        started = time.perf_counter()
        tried = explore(kinds[name], count, given.seed, given.limit)
        seconds = time.perf_counter() - started
        both = tried.taken + tried.refused
        total += both
        print(f"{name:32} {both:7} {tried.taken:7} {tried.refused:7} {seconds:7.1f}", flush=True)
        if tried.failure is not None:
            failed.append(name)
            traceback.print_exception(tried.failure, file=sys.stdout)
            print(
                f"again: python -m tests.fuzzing --kinds={name} --inputs={count} --seed={given.seed}"
            )
    print(f"{total} inputs, {len(failed)} kinds with failures: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
