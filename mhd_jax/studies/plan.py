"""`plan`: whether a run would fit on a machine that is not here, what crosses, how long a step takes.

The run's step is compiled for the machine from shapes alone, and the compiled program is read. No
parameter is drawn and no sample is read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mhd_jax.clients import Clients
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.machine import Machine, machine, prepared_for
from mhd_jax.core.types import Algorithm
from mhd_jax.core.validation import require_counts
from mhd_jax.data.dataset import Dataset, arrays
from mhd_jax.engine import memory
from mhd_jax.engine.arithmetic import alone_of, step_flops
from mhd_jax.engine.prepare import prepare
from mhd_jax.engine.run import Run
from mhd_jax.studies.compiled_text import Crossing, Instruction, crossings, executed


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published about a chip, and what its compiler assumes.

    Attributes:
      clock: cycles a second, in which the compiler estimates.
      peak: bfloat16 operations a second.
      memory: bytes that programs may use.
      links: bytes a second that the chip receives over the links of one axis, from both sides.
    """

    clock: float
    peak: float
    memory: int
    links: float


CHIPS = {"v5e": Chip(1.5e9, 1.97e14, int(15.75 * 2**30), 9e10)}
_LAYER = re.compile(r"\b([A-Z]\w*)_\d+\b")  # as Flax names them: Conv_3
# Found in the environment, these keep the TPU's compiler from asking the cloud where it is, and from
# being alone on this machine.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would need on a machine.

    Attributes:
      target: the machine.
      num_clients: K.
      num_devices: the devices that compute; the others of the target have nothing to do.
      num_shards: the parts of the client axis; devices of one part share its clients' samples.
      chunk: the clients that a device computes at once.
      recompute: whether activations are computed again for the gradient.
      memory: bytes on each device, by what they are for; without temporaries if state and data alone
        do not fit, in which case nothing is compiled.
      capacity: a device's bytes of memory.
      fits: whether the run fits.
      flops: operations of a step of all clients, additions and multiplications alike, without what
        is computed again; loops of unknown length count once. None where XLA counts nothing.
      crossings: what devices exchange in a step, the most first.
      step_seconds: the compiler's estimate of a step on each device, without what crosses; None where
        a compiler estimates nothing.
      crossing_seconds: the time of what crosses, at the rate of the links.
      floor_seconds: the time of `flops` at the peak of all devices that compute.
      shares: the parts of `step_seconds` by the kind of layer, the largest first.
      loops_of_unknown_length: how many loops count once, beside that over steps.
    """

    target: str
    num_clients: int
    num_devices: int
    num_shards: int
    chunk: int
    recompute: bool
    memory: dict[str, int]
    capacity: int
    fits: bool
    flops: float | None
    crossings: tuple[Crossing, ...]
    step_seconds: float | None
    crossing_seconds: float | None
    floor_seconds: float | None
    shares: dict[str, float]
    loops_of_unknown_length: int


def plan(
    topology: Any,
    clients: Clients,
    algorithm: Algorithm | str | None = None,
    target: str = "tpu:v5e:2x2",
    **settings: Any,
) -> Plan:
    """Compiles a run's step for a machine that need not be here, and tells what it would take.

    Args:
      topology, clients, algorithm: as for `mhd_jax.simulate`. No sample is read, so that clients of
        `mhd_jax.studies.plan.made_images` will do.
      target: ``tpu:v5e:4x4`` for 16 chips of a TPU v5e, or another layout of them, which needs the
        TPU's compiler (``pip install "jax[tpu]"``) and no TPU; ``cpu`` or ``gpu`` for the devices of
        this machine.
      **settings: the other settings of `mhd_jax.prepare`.

    Returns:
      A `Plan`.

    Raises:
      ConfigError: settings that cannot work, or a target that is unknown or cannot be compiled for.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_tpus())
        chip, described = _target(target)
        if described != machine():
            stack.enter_context(prepared_for(described))
        run = prepare(topology, clients, algorithm, **settings)
        capacity = memory.whole_bytes(run.execution.num_devices)
        parts, compiled = _memory(run, None, 0), None
        if sum(parts.values()) <= capacity:  # else compiling would take long to say the same
            run, compiled, needed = memory.most_at_once(run, run.carry)
            parts = _memory(run, compiled, sum(needed.values()))
    execution = run.execution
    flops = step_flops(alone_of(run))
    instructions = [] if compiled is None else executed(str(compiled.as_text()))
    crossing = crossings(instructions, execution.num_devices)
    cycles = sum(each.cycles for each in instructions)
    received = sum(each.received for each in crossing)
    loops = {name for each in instructions for name in each.loops_of_unknown_length}
    return Plan(
        target=target,
        num_clients=run.num_active,
        num_devices=execution.num_devices,
        num_shards=execution.num_shards,
        chunk=execution.at_once(run.clients.num_clients),
        recompute=execution.recompute,
        memory=parts,
        capacity=capacity,
        fits=compiled is not None and sum(parts.values()) <= capacity,
        flops=flops,
        crossings=tuple(crossing),
        step_seconds=cycles / chip.clock if chip and cycles else None,
        crossing_seconds=received / chip.links if chip and instructions else None,
        floor_seconds=flops / (chip.peak * execution.num_devices) if chip and flops else None,
        shares=_shares(instructions),
        loops_of_unknown_length=max(len(loops) - 1, 0),
    )


def made_images(num_images: int, shape: tuple[int, int, int], num_classes: int) -> Dataset:
    """Returns images [height, width, channels] for plans, all alike, which take no memory.

    Raises:
      ConfigError: no image, a side or channels below 1, or fewer than two classes.
    """
    height, width, channels = shape
    require_counts(num_images=num_images, height=height, width=width, channels=channels)
    sets: list[np.ndarray] = []
    for shade, count in enumerate((num_images, num_classes)):  # test images differ from the others
        sets += [np.broadcast_to(np.uint8(shade), (count, *shape)), np.arange(count) % num_classes]
    return arrays(*sets, num_classes=num_classes, pixels=True, name="made images")


def _target(target: str) -> tuple[Chip | None, Machine]:
    """Returns the chip of a target, if it is known, and the machine that it names."""
    platform, _, topology = target.partition(":")
    if platform == "tpu" and topology:
        return _tpus(topology)
    if topology or platform not in ("cpu", "gpu"):
        raise ConfigError(
            f"a target is cpu, gpu, or chips of a TPU like tpu:v5e:4x4, not {target!r}."
        )
    if platform == machine().platform:
        return None, machine()
    try:
        return None, Machine(platform, tuple(jax.devices(platform)))
    except RuntimeError as error:
        raise ConfigError(
            f"there is no {platform.upper()} here to plan for ({in_a_line(error)}); choose another "
            "target."
        ) from error


def _tpus(topology: str) -> tuple[Chip, Machine]:
    """Returns the chips of a TPU, described by its compiler."""
    kind, _, layout = topology.partition(":")
    if kind not in CHIPS or not layout:
        raise ConfigError(
            f"tpu:{topology} is none of the TPUs that can be planned for, which are "
            f"{', '.join(f'tpu:{name}:4x4' for name in CHIPS)} and other layouts of them."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            'planning for a TPU takes its compiler, which is not installed: pip install "jax[tpu]".'
        )
    from jax.experimental import topologies  # it loads slowly, and only plans need it

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # the compiler raises errors of several classes
        raise ConfigError(
            f"the TPU's compiler does not know tpu:{topology} ({in_a_line(error)}); choose a layout "
            "that it has, like 2x2, 4x4 or 16x16."
        ) from error
    return CHIPS[kind], Machine("tpu", tuple(found.devices), CHIPS[kind].memory)


@contextlib.contextmanager
def _without_tpus() -> Iterator[None]:
    """Tells the TPU's compiler that no TPU is here, if none is, so that it does not look for one."""
    added: set[str] = set()
    if machine().platform != "tpu":
        added = _NO_TPU.keys() - os.environ.keys()
    os.environ.update({name: _NO_TPU[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _memory(run: Run, compiled: jax.stages.Compiled | None, needed: int) -> dict[str, int]:
    """Returns the bytes on each device by purpose; the compiled step needs `needed`."""
    carry, samples = run.carry, run.samples
    groups = carry.state.groups
    data, *evaluated = samples.shapes()
    parts = {
        "parameters": [(group.params, group.stats) for group in groups],
        "optimizer state": [group.opt_state for group in groups],
        "snapshots": [group.snapshots for group in groups],
        "training data": data,
    }
    found = {what: memory.on_each_device(tree) for what, tree in parts.items()}
    found["other state"] = memory.on_each_device((carry, data)) - sum(found.values())
    analysis: Any = None if compiled is None else compiled.memory_analysis()
    if analysis is None:
        found["temporaries"] = max(needed - sum(found.values()), 0)
    else:
        arguments = analysis.argument_size_in_bytes
        found["padding of these"] = max(arguments - sum(found.values()), 0)
        found["temporaries"] = analysis.temp_size_in_bytes
        found["outputs"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    found["evaluation data"] = memory.on_each_device(evaluated)
    return {what: size for what, size in found.items() if size > 0}


def _shares(instructions: Sequence[Instruction]) -> dict[str, float]:
    """Returns the parts of all estimated cycles by the kind of layer that they come from."""
    cycles: collections.Counter[str] = collections.Counter()
    for each in instructions:
        layers = _LAYER.findall(each.source)
        cycles[layers[-1] if layers else "beside layers"] += each.cycles
    total = cycles.total()
    return {layer: count / total for layer, count in cycles.most_common() if count}
