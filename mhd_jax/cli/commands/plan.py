r"""Tells before a machine is rented whether a run fits on it, what crosses, how long a step takes.

  mhd plan --target=tpu:v5e:4x4 --model=resnet34 --compute_dtype=bfloat16 \
      --image_size=64 --num_classes=200 --num_clients=16 --sizes=16,64

Flags are those of mhd train. With --num_classes, no data set is read: made images of
--image_size pixels stand for it. The step is compiled for the target, which takes minutes for large
models, and is not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from absl import flags
from rich.filesize import decimal

import mhd_jax as mhd
from mhd_jax.cli import algorithm_flag, json_flag, launch
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.settings import DATA_OPTIONS, RunSettings
from mhd_jax.core.validation import require_counts
from mhd_jax.studies import tables
from mhd_jax.studies.plan import Plan, made_images

_TARGET = flags.DEFINE_string(
    "target", "tpu:v5e:2x2", "Machine: tpu:v5e:4x4, or another layout of chips; cpu; gpu."
)
_SIZES = flags.DEFINE_list("sizes", [], "Numbers of clients to plan for, instead of --num_clients.")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "Classes of made images of --image_size pixels, instead of a data set.",
    lower_bound=2,
)
_SAMPLES = flags.DEFINE_integer(
    "samples_per_client", 500, "Private samples of each client, of made images.", lower_bound=1
)
flags.adopt_module_key_flags(algorithm_flag)
flags.adopt_module_key_flags(json_flag)
flags.adopt_module_key_flags(run_flags)

_NOTE = (
    "Memory and what crosses are what the compiler says. Times are estimated: a step by the "
    "compiler's own model of the chip, the rest by published rates. Nothing was run."
)
_MOST_CROSSINGS = 6  # of each plan that are shown
_MOST_LAYERS = 4  # of each plan that are shown
_MADE_SIDE = 32  # pixels, by default


def main() -> None:
    """Plans the run that the flags describe, for each number of clients."""
    algorithm = algorithm_flag.value()
    settings = run_flags.settings()
    plans: list[Plan] = []
    for number in _sizes(settings.num_clients):
        of_size = dataclasses.replace(settings, num_clients=number)
        arguments = of_size.arguments(algorithm, flags.FLAGS.seed, _made_images(of_size))
        plans.append(mhd.plan(**arguments, target=_TARGET.value))
        if json_flag.asked():  # after every plan, so that none is lost
            json_flag.say(dataclasses.asdict(plans[-1]), alone=True)
    if json_flag.asked():
        return
    console = launch.console()
    columns = ["each device", *(f"{each.num_clients} clients" for each in plans)]
    console.print(tables.rich(columns, _lines(plans), f"{algorithm.name} on {_TARGET.value}"))
    for each in plans:
        if each.crossings:
            title = f"what {each.num_clients} clients exchange in a step, the most first"
            headings = ("operation", "array", "times", "received by each device")
            console.print(tables.rich(headings, _crossing_lines(each), title))
    console.print(_NOTE)


def _sizes(by_default: int) -> list[int]:
    """Returns the numbers of clients to plan for."""
    if not all(size.isdecimal() and int(size) > 0 for size in _SIZES.value):
        raise mhd.ConfigError("--sizes takes positive integers, like 8,16,64.")
    return [int(size) for size in _SIZES.value] or [by_default]


def _made_images(settings: RunSettings) -> mhd.data.Dataset | None:
    """Returns images of no memory, if the flags ask for made ones."""
    if _NUM_CLASSES.value is None:
        if _SAMPLES.present:
            raise mhd.ConfigError(
                "--samples_per_client is of made images; give --num_classes too, or leave it out."
            )
        return None
    for name in ("dataset", *DATA_OPTIONS):
        if name != "image_size" and flags.FLAGS[name].present:
            raise mhd.ConfigError(
                f"--num_classes is of made images, which stand for a data set; leave it or --{name} out."
            )
    side = _MADE_SIDE if settings.image_size is None else settings.image_size
    require_counts(image_size=side)
    public = 0.1 if settings.public_fraction is None else settings.public_fraction
    set_aside = public + settings.validation_fraction
    count = round(settings.num_clients * _SAMPLES.value / max(1 - set_aside, 0.01))
    made = made_images(count, (side, side, 3), _NUM_CLASSES.value)
    return made.prepared(crop_size=settings.crop_size, standardize=bool(settings.standardize))


def _lines(plans: Sequence[Plan]) -> list[list[str]]:
    """Returns the lines of a table with a column for each plan."""
    lines: list[list[str]] = []

    def add(what: str, value: Callable[[Plan], str]) -> None:
        lines.append([what, *map(value, plans)])

    add("devices that compute", lambda plan: str(plan.num_devices))
    add("parts of the clients", lambda plan: str(plan.num_shards))
    add("clients at once", lambda plan: f"{plan.chunk}{' (again)' if plan.recompute else ''}")
    add("fits", lambda plan: "yes" if plan.fits else "NO")
    add("memory", lambda plan: f"{decimal(sum(plan.memory.values()))} of {decimal(plan.capacity)}")
    for part in dict.fromkeys(part for plan in plans for part in plan.memory):
        add(f"  {part}", lambda plan, part=part: decimal(plan.memory.get(part, 0)))  # type: ignore[misc]
    add("step, estimated", lambda plan: _milliseconds(plan.step_seconds))
    for layer in dict.fromkeys(layer for plan in plans for layer in [*plan.shares][:_MOST_LAYERS]):
        add(f"  {layer}", lambda plan, layer=layer: f"{plan.shares.get(layer, 0):.0%}")  # type: ignore[misc]
    add("arithmetic of all", lambda plan: f"{plan.flops / 1e9:,.1f} GFLOP" if plan.flops else "–")
    add("  at the peak", lambda plan: _milliseconds(plan.floor_seconds))
    add("crossing, received", lambda plan: decimal(sum(c.received for c in plan.crossings)))
    add("  at the links' rate", lambda plan: _milliseconds(plan.crossing_seconds))
    add("loops counted once", lambda plan: str(plan.loops_of_unknown_length))
    return lines


def _crossing_lines(plan: Plan) -> list[list[str]]:
    shown = [
        [each.kind, f"{each.dtype}{list(each.shape)}", str(each.times), decimal(each.received)]
        for each in plan.crossings[:_MOST_CROSSINGS]
    ]
    rest = plan.crossings[_MOST_CROSSINGS:]
    if rest:
        times, received = (sum(getattr(c, name) for c in rest) for name in ("times", "received"))
        shown.append([f"{len(rest)} other kinds", "", str(times), decimal(received)])
    return shown


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3g} ms"


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main)
