"""Measures speed as ratios of times in one process, and compares each ratio with its target.

  python -m experiments.benchmark --rows=cpu_vs_loop,cpu_floor --output=bench.json

Both sides of a ratio are timed in turn, after warm-up and compilation: a, b, a, b, …. Each pair
gives a ratio; a row's value is the median of the ratios, and its spread their quartiles. Thus
short disturbances of the machine affect both sides alike. A lasting one, such as another process,
does not: it slows a step that waits for the slower of two devices more than a matrix product that
any core computes. Rows that compare with the matmul ceiling therefore count processor seconds of
this process instead of clock seconds (the detail holds the number of cores that each side kept
busy). A row is marked as disturbed if other processes, or a hypervisor, took more than a tenth of
the machine's processors meanwhile, or if the quartiles differ by more than a fifth of the median.

The output is a JSON list of {"row", "value", "unit", "target", "met", "detail", "spread", "others",
"disturbed"}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn
from rich.table import Table

import mhd_jax as mhd
from experiments import launch, timing
from experiments.timing import Processors, Ratio, Times, in_turn
from mhd_jax.core.client_axis import Execution, client_mesh, default_platform, over_clients, under
from mhd_jax.core.files import folder_here
from mhd_jax.data.batching import draw_batch
from mhd_jax.engine import memory
from mhd_jax.engine.prepare import prepare
from mhd_jax.engine.run import Run
from mhd_jax.models import ClientModel, build_backbone, resnet
from mhd_jax.runs.records import write_json
from mhd_jax.training.losses import private_cross_entropy


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      met: whether the value meets the target; None if this machine cannot decide that, for the
        reason in `detail`.
      spread: the quartiles of the ratios whose median is `value`.
      others: the share of the machine's processors that other programs used.
      disturbed: whether `others` or the spread is too large to trust the value.
    """

    row: str
    value: float | None
    unit: str
    target: str
    met: bool | None
    detail: dict[str, Any]
    spread: tuple[float, float] | None = None
    others: float | None = None
    disturbed: bool | None = None


def judged(row: Row, others: float) -> Row:
    """Returns the row with the share of other programs, and with whether it is disturbed."""
    ratio = None if row.value is None or row.spread is None else Ratio(row.value, row.spread)
    return dataclasses.replace(row, others=others, disturbed=timing.disturbed(ratio, others))


def _row(
    name: str, ratio: Ratio, unit: str, target: str, met: bool | None, detail: dict[str, Any]
) -> Row:
    return Row(name, ratio.value, unit, target, met, detail, ratio.spread)


def dispatch() -> Row:
    """Compares a dispatch of 100 steps of the demo's MHD with 100 calls of the jitted step.

    The calls take a fixed batch.
    """
    steps = 100
    run = prepare("complete", mhd.make_clients("digits", 8), "mhd", num_devices=1)
    carry = run.start()
    state = carry.state
    batch = draw_batch(run.data, state.key, state.client_ids, state.step, run.spec)
    graph = run.topology.at(0)
    step = jax.jit(run.algorithm.train_step)

    def one_by_one() -> Any:
        current = state
        for _ in range(steps):
            current, metrics = step(current, batch, graph)
        return current, metrics

    holder = [jax.tree.map(jnp.copy, carry)]  # a dispatch donates its carry

    def dispatched() -> Any:
        holder[0] = run.advance(holder[0], steps)
        return holder[0]

    times = in_turn(dispatched, one_by_one)
    ratio = Ratio.of(times.clock[:, 0], times.clock[:, 1])
    together, apart = times.medians()
    detail = {"dispatch_ms_per_step": 10 * together, "calls_ms_per_step": 10 * apart}
    unit = "times the time of the calls"
    return _row("dispatch", ratio, unit, "≤ 1.3", ratio.value <= 1.3, detail)


def schedule() -> Row:
    """Compares the demo's MHD on a random matching for every step with one fixed matching."""
    clients = mhd.make_clients("digits", 8)
    changing = mhd.topology.random_matching(8)
    runs = [prepare(graph, clients, "mhd") for graph in (changing, changing.at(0))]
    times = _of_steps(*runs, steps=100, repetitions=31)
    ratio = Ratio.of(times.clock[:, 0], times.clock[:, 1])
    by_steps = [1e3 * seconds for seconds in times.medians()]
    detail = dict(zip(("changing_ms_per_step", "static_ms_per_step"), by_steps, strict=True))
    return _row("schedule", ratio, "times the time", "≤ 1.05", ratio.value <= 1.05, detail)


def pool() -> Row:
    """Compares the demo's MHD with teachers from pools and with current teachers.

    Pools have 4 snapshots, of which one is renewed every 20 steps.
    """
    clients = mhd.make_clients("digits", 8)
    pooled = mhd.algorithms.mhd(pool_size=4, pool_refresh=20)
    runs = [prepare("complete", clients, algorithm) for algorithm in (pooled, "mhd")]
    times = _of_steps(*runs, steps=100, repetitions=31)
    ratio = Ratio.of(times.clock[:, 0], times.clock[:, 1])
    pooled_seconds, fresh = times.medians()
    detail = {"pool_ms_per_step": 1e3 * pooled_seconds, "fresh_ms_per_step": 1e3 * fresh}
    return _row("pool", ratio, "times the time", "none: what it costs", None, detail)


def numbers() -> Row:
    """Compares runs of the demo's MHD in one program with one run after the other.

    The runs have four weights and two seeds; times include compilation.
    """
    who = [mhd.make_clients("digits", 8, seed=seed) for seed in (0, 1)]
    settings: list[dict[str, Any]] = [
        {
            "topology": "complete",
            "clients": clients,
            "algorithm": mhd.algorithms.mhd(nu_aux=nu_aux),
            "seed": seed,
            "steps": 1000,
        }
        for nu_aux in (0.1, 0.2, 0.3, 0.4)
        for seed, clients in enumerate(who)
    ]

    def seconds(sets: list[list[dict[str, Any]]]) -> float:
        jax.clear_caches()
        with no_compilation_cache():
            started = time.perf_counter()
            for runs in sets:
                mhd.simulate_many(runs, eval_every=1000, progress=False)
            return time.perf_counter() - started

    pairs = np.array(
        [(seconds([settings]), seconds([[one] for one in settings])) for _ in range(2)]
    )
    together, apart = np.median(pairs, axis=0)
    detail = {"runs": len(settings), "together_seconds": together, "apart_seconds": apart}
    ratio = Ratio.of(pairs[:, 0], pairs[:, 1])
    return _row("numbers", ratio, "times the time", "none: what it saves", None, detail)


def load() -> Row:
    """Compares a step of 1,000 clients with four times a step of 250: MLPs, MHD.

    The graph is random regular of degree 4.
    """
    runs = []
    for num_clients in (1000, 250):
        clients = images_of_clients(
            num_clients, "mlp", norm=None, count=40 * num_clients, shape=(8, 8, 1)
        )
        graph = mhd.topology.random_regular(num_clients, degree=4)
        runs.append(prepare(graph, clients, "mhd", steps=10_000))
    compiled = [compilation(run) for run in runs]
    times = _of_steps(*runs, steps=4, repetitions=7)
    many, few = times.medians()
    ratio = Ratio.of(times.clock[:, 0], 4 * times.clock[:, 1])
    detail = {
        "ms_per_step": [1e3 * many, 1e3 * few],
        "compile_seconds": [seconds for seconds, _ in compiled],
        "megabytes": [size / 1e6 for _, size in compiled],
    }
    return _row("load", ratio, "times linear growth", "≤ 1.25", ratio.value <= 1.25, detail)


def compilation(run: Run) -> tuple[float, int]:
    """Returns the seconds to compile a run's dispatch, and the bytes of its state and step.

    Bytes are those of all devices together.
    """
    with no_compilation_cache():
        started = time.perf_counter()
        compiled: Any = run.lower(run.carry).compile()
        seconds = time.perf_counter() - started
    beside = run.execution.num_devices * compiled.memory_analysis().temp_size_in_bytes
    return seconds, memory.num_bytes(run.carry) + beside


# ResNet-20 with EvoNorm on 32×32×3, batch 32: 16 clients train alone, with plain SGD.

_CLIENTS, _BATCH = 16, 32
_FEW = 3  # repetitions of slow calls


def _gradient_step(model: ClientModel) -> Callable[[Any, jax.Array, jax.Array], Any]:
    """Returns one client's training step: forward pass, backward pass, SGD."""

    def step(params: Any, inputs: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            outputs, _ = model.apply(params, {}, inputs, jax.random.key(0))
            mask = jnp.ones(len(labels))
            return private_cross_entropy(outputs.logits[:, 0], labels, mask, 0.0)

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    return step


@functools.cache
def _resnet20() -> dict[str, Any]:
    """Returns the clients, their data, and the single-client step with XLA's own convolution."""
    shape = (32, 32, 3)
    model = ClientModel(build_backbone("resnet20", "evonorm", shape), 1, 10)
    params, inputs, labels = _made_clients(model, _CLIENTS, _BATCH, shape)
    plain = _gradient_step(model)
    first = jax.tree.map(lambda a: a[0], (params, inputs, labels))
    with mock.patch.object(resnet, "Conv", nn.Conv):
        one_client = jax.jit(plain).lower(*first).compile()
        forward = jax.jit(lambda p, x, _: model.apply(p, {}, x)[0]).lower(*first).compile()
    flops, forward_flops = (
        _CLIENTS * dict(program.cost_analysis())["flops"]  # type: ignore[arg-type]
        for program in (one_client, forward)
    )
    return {
        "model": model,
        "arrays": (params, inputs, labels),
        "each": [
            jax.tree.map(lambda a, i=i: a[i], (params, inputs, labels)) for i in range(_CLIENTS)
        ],
        "one_client": one_client,
        "flops": flops,
        "forward_flops": forward_flops,
    }


@functools.cache
def _two_engine_steps() -> Callable[[], Any]:
    """Returns a call of two steps of all 16 clients as in the engine, in a loop over steps."""
    setting = _resnet20()
    execution = Execution(
        chunk=1 if default_platform() == "cpu" else None,
        mesh=client_mesh(_devices()),
        platform=default_platform(),
    )
    arrays = jax.device_put(setting["arrays"], execution.sharding(by_client=True))
    steps = _engine_steps(_gradient_step(setting["model"]), execution)
    return lambda: steps(*arrays, jnp.int32(2))


def _devices() -> int:
    return min(jax.device_count(), _CLIENTS)


@dataclasses.dataclass(frozen=True)
class _Ceiling:
    """A large matrix product on the whole machine, whose FLOP rate serves as the ceiling."""

    call: Callable[[], Any]
    flops: float


@functools.cache
def _ceiling(dtype: str = "float32") -> _Ceiling:
    size = 4096 if default_platform() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    return _Ceiling(lambda: product(a), 2.0 * size**3)


def _against_the_ceiling(
    name: str, steps: Callable[[], Any], count: int, flops: float, target: float
) -> Row:
    """Returns the ratio of the steps' FLOP rate to the rate of the matmul ceiling.

    Both rates are per processor second.
    """
    ceiling = _ceiling()
    times = in_turn(steps, ceiling.call, repetitions=7)
    each = times.processors / np.array([count * flops, ceiling.flops])  # per FLOP
    ratio = Ratio.of(each[:, 1], each[:, 0])
    seconds, product = times.medians()
    cores = times.cores()
    detail = {
        "step_seconds": seconds / count,
        "gflop": flops / 1e9,
        "ceiling_gflops": ceiling.flops / product / 1e9,
        "fraction_by_the_clock": count * flops / seconds / (ceiling.flops / product),
        "cores_busy": {"step": cores[0], "ceiling": cores[1]},
    }
    return _cpu_row(name, ratio, "of the ceiling", f"≥ {target}", ratio.value >= target, detail)


def cpu_vs_loop() -> Row:
    """Compares the engine's step with a Python loop over a jitted single-client step."""
    setting = _resnet20()

    def loop() -> Any:
        return [setting["one_client"](*arguments) for arguments in setting["each"]]

    times = in_turn(_two_engine_steps(), loop, repetitions=5)
    ratio = Ratio.of(times.clock[:, 1], times.clock[:, 0] / 2)
    together, apart = times.medians()
    detail = {"engine_seconds": together / 2, "loop_seconds": apart, "devices": _devices()}
    return _cpu_row("cpu_vs_loop", ratio, "times faster", "≥ 1.3", ratio.value >= 1.3, detail)


def cpu_vs_vmap() -> Row:
    """Compares the engine's step with vmap of the plain convolution.

    The latter is measured outside a loop, which is its best case.
    """
    setting = _resnet20()
    step = _gradient_step(setting["model"])
    with mock.patch.object(resnet, "Conv", nn.Conv):
        vmapped = jax.jit(jax.vmap(step)).lower(*setting["arrays"]).compile()
    times = in_turn(_two_engine_steps(), lambda: vmapped(*setting["arrays"]), repetitions=_FEW)
    ratio = Ratio.of(times.clock[:, 1], times.clock[:, 0] / 2)
    together, plain = times.medians()
    detail = {"engine_seconds": together / 2, "vmap_seconds": plain}
    return _cpu_row("cpu_vs_vmap", ratio, "times faster", "≥ 5", ratio.value >= 5, detail)


def cpu_floor() -> Row:
    """Returns the fraction of the matmul ceiling that the engine's step reaches."""
    flops = _resnet20()["flops"]
    return _against_the_ceiling("cpu_floor", _two_engine_steps(), 2, flops, 0.5)


@dataclasses.dataclass(frozen=True)
class _SmallClients:
    """Training steps of many small clients, as in the engine and client by client.

    Attributes:
      together: a call of `steps` steps of all clients in the engine's loop.
      apart: a call of one step of all clients, one after the other.
      steps: the steps of `together`.
      flops: FLOPs of one step of all clients.
    """

    together: Callable[[], Any]
    apart: Callable[[], Any]
    steps: int
    flops: float


def _small_clients(model_name: str, shape: tuple[int, ...], steps: int = 20) -> _SmallClients:
    """Makes steps of 64 clients, batch 32, as the engine's loop and as a loop over clients."""
    num_clients = 64
    model = ClientModel(build_backbone(model_name, None, shape), 1, 10)
    params, inputs, labels = _made_clients(model, num_clients, _BATCH, shape)
    execution = Execution(mesh=client_mesh(min(jax.device_count(), num_clients)))
    arrays = jax.device_put((params, inputs, labels), execution.sharding(by_client=True))
    step = _gradient_step(model)
    engine_steps = _engine_steps(step, execution)
    one_client = jax.jit(step)
    each = [jax.tree.map(lambda a, i=i: a[i], (params, inputs, labels)) for i in range(num_clients)]
    analysis: Any = one_client.lower(*each[0]).compile().cost_analysis()
    return _SmallClients(
        together=lambda: engine_steps(*arrays, jnp.int32(steps)),
        apart=lambda: [one_client(*arguments) for arguments in each],
        steps=steps,
        flops=num_clients * analysis["flops"],
    )


def small_vs_loop() -> Row:
    """Compares the engine with a loop of jitted steps, for 64 clients with the demo's MLP."""
    found, ceiling = _small_clients("mlp", (8, 8, 1)), _ceiling()
    times = in_turn(found.together, found.apart, ceiling.call, repetitions=21)
    ratio = Ratio.of(times.clock[:, 1], times.clock[:, 0] / found.steps)
    together, apart, product = times.medians()
    floor = found.flops / ceiling.flops * product
    detail = {
        "engine_ms": 1e3 * together / found.steps,
        "loop_ms": 1e3 * apart,
        "fraction_of_the_ceiling": floor / (together / found.steps),
        "ratio_at_the_ceiling": apart / floor,
    }
    return _row("small_vs_loop", ratio, "times faster", "≥ 5", ratio.value >= 5, detail)


def gpu_small() -> Row:
    """Compares 64 LeNet-5 clients at 28 pixels on the GPU: all at once, and one by one."""
    if default_platform() != "gpu":
        return _unmeasured("gpu_small", "times faster", "≥ 8", _NO_GPU)
    found = _small_clients("lenet5", (28, 28, 1))
    times = in_turn(found.together, found.apart)
    ratio = Ratio.of(times.clock[:, 1], times.clock[:, 0] / found.steps)
    together, apart = times.medians()
    detail = {"engine_ms": 1e3 * together / found.steps, "loop_ms": 1e3 * apart}
    return _row("gpu_small", ratio, "times faster", "≥ 8", ratio.value >= 8, detail)


def gpu_resnet34() -> Row:
    """Compares 8 clients' ResNet-34 at 64 pixels in bfloat16 with one client of all samples."""
    if default_platform() != "gpu":
        return _unmeasured("gpu_resnet34", "of the rate", "≥ 0.8", _NO_GPU)
    return _many_against_one("gpu_resnet34", "resnet34", num_clients=8, batch_size=128, side=64)


def _many_against_one(
    row: str, model_name: str, num_clients: int, batch_size: int, side: int, steps: int = 5
) -> Row:
    """Returns the ratio of samples a second: K clients with batch B, one with batch K·B."""
    shape = (side, side, 3)
    model = ClientModel(build_backbone(model_name, None, shape), 1, 1000, "bfloat16")
    run = _engine_steps(_gradient_step(model), Execution())
    many = _made_clients(model, num_clients, batch_size, shape)
    one = _made_clients(model, 1, num_clients * batch_size, shape)
    product = _ceiling("bfloat16")
    times = in_turn(
        lambda: run(*many, jnp.int32(steps)),
        lambda: run(*one, jnp.int32(steps)),
        product.call,
        repetitions=5,
    )
    # A loop's body counts once, whatever its trip count.
    analysis: Any = run.lower(*one, jnp.int32(1)).compile().cost_analysis()
    apart, together, seconds = times.medians()
    ceiling = product.flops / seconds
    ratio = Ratio.of(times.clock[:, 1], times.clock[:, 0])
    detail = {
        "clients_seconds": apart / steps,
        "one_client_seconds": together / steps,
        "gflop": analysis["flops"] / 1e9,
        "ceiling_gflops": ceiling / 1e9,
        "clients_mfu": analysis["flops"] * steps / apart / ceiling,
        "one_client_mfu": analysis["flops"] * steps / together / ceiling,
    }
    return _row(row, ratio, "of the rate", "≥ 0.8", ratio.value >= 0.8, detail)


def _made_clients(
    model: ClientModel, num_clients: int, batch_size: int, shape: tuple[int, ...]
) -> tuple[Any, jax.Array, jax.Array]:
    """Returns parameters, inputs and labels of clients with synthetic samples."""
    inputs = jax.random.normal(jax.random.key(1), (num_clients, batch_size, *shape))
    labels = jax.random.randint(jax.random.key(2), (num_clients, batch_size), 0, model.num_classes)
    keys = jax.random.split(jax.random.key(0), num_clients)
    init = jax.jit(lambda keys, x: jax.vmap(model.init, (0, None))(keys, x)[0])
    return init(keys, inputs[0, :1]), inputs, labels


def _engine_steps(step: Callable[..., Any], execution: Execution) -> Any:
    """Returns a function that takes steps of all clients in a loop of traced length."""

    @jax.jit
    def steps(params: Any, inputs: jax.Array, labels: jax.Array, count: jax.Array) -> Any:
        with under(execution):
            return jax.lax.fori_loop(
                0, count, lambda _, p: over_clients(step)(p, inputs, labels), params
            )

    return steps


def dispatches(run: Run, steps: int) -> Callable[[], Any]:
    """Returns a call that takes `steps` more steps of a run."""
    holder = [run.advance(run.start(), 0)]

    def advance() -> Any:
        holder[0] = run.advance(holder[0], steps)
        return holder[0]

    return advance


def _of_steps(*runs: Run, steps: int, repetitions: int = 9) -> Times:
    """Returns times of one step of each run, from dispatches of `steps` steps in turn."""
    times = in_turn(*(dispatches(run, steps) for run in runs), repetitions=repetitions)
    return Times(times.clock / steps, times.processors / steps)


_MHD_SETTINGS: dict[str, Any] = {
    "batch_size": _BATCH,
    "public_batch_size": _BATCH,
    "steps": 1000,
}


def images_of_clients(
    num_clients: int,
    model: Any = "resnet20",
    norm: str | None = "group",
    count: int = 4000,
    shape: tuple[int, ...] = (32, 32, 3),
) -> mhd.Clients:
    """Makes clients that share `count` synthetic images, by default of CIFAR-10's shape."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    data = mhd.data.arrays(images, np.arange(count) % 10)
    return mhd.make_clients(data, num_clients, model, norm=norm, partition="iid")


def mhd_overhead() -> Row:
    """Compares MHD with isolated training on as many samples (private + public) in a step.

    8 clients have ResNet-20 with GroupNorm.
    """
    clients = images_of_clients(8)
    together = prepare("complete", clients, "mhd", **_MHD_SETTINGS)
    both = {**_MHD_SETTINGS, "batch_size": 2 * _BATCH}
    alone = prepare("empty", clients, "isolated", **both)
    times = _of_steps(together, alone, steps=1, repetitions=5)
    ratio = Ratio.of(times.clock[:, 0], times.clock[:, 1])
    of_mhd, isolated = times.medians()
    detail = {"mhd_seconds": of_mhd, "isolated_seconds": isolated, "graph": "complete"}
    return _row("mhd_overhead", ratio, "times the time", "≤ 1.10", ratio.value <= 1.1, detail)


def mixed() -> Row:
    """Compares a step of MHD of 4 small CNNs and 4 ResNet-8 with the sum of separate steps."""

    def of(*models: str) -> Run:
        clients = images_of_clients(4 * len(models), [name for name in models for _ in range(4)])
        return prepare("complete", clients, "mhd", **_MHD_SETTINGS)

    times = _of_steps(of("cnn", "resnet8"), of("cnn"), of("resnet8"), steps=2)
    ratio = Ratio.of(times.clock[:, 0], times.clock[:, 1:].sum(axis=1))
    together, *apart = times.medians()
    detail = {"mixed_seconds": together, "apart_seconds": apart}
    return _row("mixed", ratio, "times the time", "≤ 1.10", ratio.value <= 1.1, detail)


class _Glance(nn.Module):
    """A backbone of one layer on every fourth pixel, so small that a step waits for data."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        return nn.relu(nn.Dense(16)(x[:, ::4, ::4].reshape(x.shape[0], -1)))


def streamed() -> Row:
    """Compares streaming from the host with data on the device, for MHD of 8 tiny clients.

    The images have CIFAR-10's shape.
    """
    clients = images_of_clients(8, _Glance(), norm=None, count=50_000)
    runs = [
        prepare("complete", clients, "mhd", data_placement=where, **_MHD_SETTINGS)
        for where in ("device", "host")
    ]
    times = _of_steps(*runs, steps=200)
    ratio = Ratio.of(times.clock[:, 0], times.clock[:, 1])
    held, fed = times.medians()
    detail = {"device_ms_per_step": 1e3 * held, "host_ms_per_step": 1e3 * fed}
    return _row("streamed", ratio, "of the rate", "≥ 0.8", ratio.value >= 0.8, detail)


def compile_growth() -> Row:
    """Returns the ratio of compile times of MHD with LeNet-5: 64 clients over 4."""

    def seconds(num_clients: int) -> float:
        clients = mhd.make_clients("digits", num_clients, "lenet5", partition="iid")
        run = prepare("ring", clients, "mhd", steps=10)
        carry = run.start()
        jax.clear_caches()
        started = time.perf_counter()
        jax.block_until_ready(run.advance(carry, 0))
        return time.perf_counter() - started

    with no_compilation_cache():
        pairs = np.array([(seconds(64), seconds(4)) for _ in range(_FEW)])
    ratio = Ratio.of(pairs[:, 0], pairs[:, 1])
    many, few = np.median(pairs, axis=0)
    detail = {"seconds_64": many, "seconds_4": few}
    return _row("compile_growth", ratio, "times the time", "≤ 1.5", ratio.value <= 1.5, detail)


def compile_cache() -> Row:
    """Returns the ratio of a second start's compilation time to the first's, with the disk cache.

    Each start is a process with another hash seed, which changes the order of Python's sets; the
    first start is followed by two that find its programs.
    """
    program = "from experiments import train; from experiments.launch import run; run(train.main)"

    def compile_seconds(folder: pathlib.Path, hash_seed: int) -> float:
        workdir = folder / str(hash_seed)
        arguments = [f"--workdir={workdir}", f"--compilation_cache={folder}/cache", "--steps=1"]
        command = [sys.executable, "-c", program, *arguments]
        environ = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        subprocess.run(command, check=True, capture_output=True, env=environ)
        summary = json.loads((workdir / "summary.json").read_text())
        return float(summary["timing"]["compile_seconds"])

    pairs = []
    for again in range(_FEW):
        with tempfile.TemporaryDirectory() as folder:
            first, *seconds = (
                compile_seconds(pathlib.Path(folder), 3 * again + start) for start in range(3)
            )
            pairs += [(second, first) for second in seconds]
    found = np.array(pairs)
    ratio = Ratio.of(found[:, 0], found[:, 1])
    detail = {"first_seconds": found[::2, 1].tolist(), "second_seconds": found[:, 0].tolist()}
    return _row("compile_cache", ratio, "of the first", "≤ 0.25", ratio.value <= 0.25, detail)


def cpu_gossip() -> Row:
    """Returns the fraction of the matmul ceiling of gossip with quasi-global momentum on a ring.

    16 clients have ResNet-20 with EvoNorm.
    """
    return _on_a_ring("cpu_gossip", "qg_dsgd", _resnet20()["flops"])


def cpu_ccl() -> Row:
    """Returns the fraction of the matmul ceiling of CCL, in the setting of `cpu_gossip`.

    CCL's cross features take two more forward passes of every client.
    """
    setting = _resnet20()
    return _on_a_ring("cpu_ccl", "ccl", setting["flops"] + 2 * setting["forward_flops"])


def _on_a_ring(row: str, algorithm: str, flops: float) -> Row:
    clients = images_of_clients(_CLIENTS, norm="evonorm")
    run = prepare("ring", clients, algorithm, batch_size=_BATCH, steps=1000)
    return _against_the_ceiling(row, dispatches(run, 2), 2, flops, 0.48)


def peak_memory() -> Row:
    """Measures the memory of a step of MHD in chunks of one client, without the data.

    8 clients have ResNet-20 with GroupNorm.
    """
    clients = images_of_clients(8)
    run = prepare("complete", clients, "mhd", client_chunk=1, num_devices=1, **_MHD_SETTINGS)
    analysis: Any = run.lower(run.carry).compile().memory_analysis()
    carry = memory.num_bytes(run.carry)
    needs = memory.estimate(run.clients, run.algorithm, run.spec)
    activations = max(needs.private, needs.public)
    ratio = (analysis.temp_size_in_bytes + carry) / (carry + activations)
    detail = {
        "compiled_megabytes": (analysis.temp_size_in_bytes + carry) / 1e6,
        "state_megabytes": carry / 1e6,
        "activations_megabytes": activations / 1e6,
    }
    return Row("memory", ratio, "of state and activations", "≤ 1.3", ratio <= 1.3, detail)


def sharded() -> Row:
    """Counts the bytes that cross devices in a step of MHD beside the predictions."""
    if jax.device_count() == 1:
        return _unmeasured("sharded", "bytes", "0", "there is one device")
    clients = mhd.make_clients("digits", 8)
    run = prepare("complete", clients, "mhd", steps=10)
    text = run.lower(run.carry).compile().as_text()
    pattern = r"= (\w+)\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)"
    found = [
        (kind, tuple(int(n) for n in dims.split(",") if n))
        for kind, dims in re.findall(pattern, str(text))
    ]
    params = {leaf.shape for leaf in jax.tree.leaves(run.carry.state.groups)}
    replicated = [dims for _, dims in found if dims in params and len(dims) > 1]
    others = [dims for _, dims in found if 64 not in dims]
    size = 4 * sum(int(np.prod(dims)) for dims in others)
    detail = {"collectives": [f"{kind}{list(dims)}" for kind, dims in found]}
    met = not replicated and size <= 1024
    return Row("sharded", size, "bytes a step", "predictions alone, no parameters", met, detail)


def _cpu_row(
    name: str, ratio: Ratio, unit: str, target: str, met: bool, detail: dict[str, Any]
) -> Row:
    if default_platform() != "cpu":
        return _unmeasured(name, unit, target, "this row is about CPUs")
    return _row(name, ratio, unit, target, met, detail)


def _unmeasured(name: str, unit: str, target: str, why: str) -> Row:
    return Row(name, None, unit, target, None, {"reason": why})


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Disables JAX's compilation cache inside the block, so that compilation can be timed."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


_NO_GPU = "this row is about GPUs, and there is none"
ROWS: dict[str, Callable[[], Row]] = {
    "cpu_vs_loop": cpu_vs_loop,
    "cpu_vs_vmap": cpu_vs_vmap,
    "cpu_floor": cpu_floor,
    "cpu_gossip": cpu_gossip,
    "cpu_ccl": cpu_ccl,
    "small_vs_loop": small_vs_loop,
    "mhd_overhead": mhd_overhead,
    "mixed": mixed,
    "dispatch": dispatch,
    "schedule": schedule,
    "pool": pool,
    "numbers": numbers,
    "load": load,
    "streamed": streamed,
    "compile_growth": compile_growth,
    "compile_cache": compile_cache,
    "memory": peak_memory,
    "gpu_resnet34": gpu_resnet34,
    "gpu_small": gpu_small,
    "sharded": sharded,
}

_ROWS = flags.DEFINE_list("rows", list(ROWS), "Rows to measure.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the rows as JSON.")


def main() -> None:
    """Measures the rows that the flags name."""
    unknown = [name for name in _ROWS.value if name not in ROWS]
    if unknown or not _ROWS.value:
        raise mhd.ConfigError(f"--rows takes {', '.join(ROWS)}; unknown: {', '.join(unknown)}.")
    output = folder_here(_OUTPUT.value, "--output") if _OUTPUT.value else None
    device = jax.devices()[0]
    table = Table(
        "row",
        "value",
        "spread",
        "unit",
        "target",
        "met",
        "others",
        title=f"{jax.device_count()} × {device.device_kind}",
    )
    rows = []
    for name in _ROWS.value:
        before = Processors.now()
        row = ROWS[name]()
        row = judged(row, Processors.now().others_since(before))
        rows.append(row)
        table.add_row(
            row.row,
            "–" if row.value is None else f"{row.value:.2f}",
            "–" if row.spread is None else "{:.2f}–{:.2f}".format(*row.spread),
            row.unit,
            row.target,
            {True: "yes", False: "no", None: "–"}[row.met],
            f"{row.others:.0%}{', disturbed' if row.disturbed else ''}",
        )
        if output is not None:  # after every row, so that none is lost
            write_json(output, [dataclasses.asdict(row) for row in rows])
    launch.console().print(table)


if __name__ == "__main__":
    launch.run(main)
