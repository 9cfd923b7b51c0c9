"""Measures speed as ratios of times in one process, and compares each ratio with its target.

  python -m experiments.benchmark --rows=cpu_vs_loop,cpu_floor --output=bench.json
  python -m experiments.benchmark --record --compare=experiments/results/bench/OLD.json

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
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import linen as nn

import mhd_jax as mhd
from experiments import speed, timing
from experiments.timing import Processors, Ratio, Times, in_turn
from mhd_jax.cli import launch
from mhd_jax.core.client_axis import (
    AT_ONCE,
    Execution,
    client_mesh,
    default_platform,
    over_clients,
    under,
)
from mhd_jax.core.files import file_here
from mhd_jax.core.trees import num_bytes
from mhd_jax.data.batching import draw_batch
from mhd_jax.engine.memory import estimate
from mhd_jax.engine.prepare import prepare
from mhd_jax.engine.run import Run
from mhd_jax.models import ClientModel, build_backbone, resnet
from mhd_jax.models.conv import Conv
from mhd_jax.models.small import halve
from mhd_jax.runs.records import write_json
from mhd_jax.studies import tables
from mhd_jax.studies.plan import Plan, made_images
from mhd_jax.training.losses import private_cross_entropy

# A ratio of times, or a number, or None where nothing can be measured; and details of it.
Found = tuple[Ratio | float | None, dict[str, Any]]


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
    spread: tuple[float, float] | None
    others: float
    disturbed: bool


ROWS: dict[str, Callable[[], Row]] = {}


def row(
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    target: str = "",
    platform: str | None = None,
) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Makes a function that measures something the row of the function's name.

    Args:
      unit: the unit of what it returns.
      at_least, at_most: the bound that a value must keep to meet the target.
      target: the target in words, if there is no bound.
      platform: the only platform that the row is about.
    """

    def judged(measure: Callable[[], Found]) -> Row:
        before = Processors.now()
        if platform in (None, default_platform()):
            found, detail = measure()
        else:
            found, detail = None, {"reason": f"this row is about {platform.upper()}s"}
        others = Processors.now().others_since(before)
        ratio = found if isinstance(found, Ratio) else None
        value = found.value if isinstance(found, Ratio) else found
        met, wanted = None, target
        if at_least is not None:
            met, wanted = value is not None and value >= at_least, f"≥ {at_least}"
        if at_most is not None:
            met, wanted = value is not None and value <= at_most, f"≤ {at_most}"
        return Row(
            row=measure.__name__,
            value=value,
            unit=unit,
            target=wanted,
            met=None if value is None else met,
            detail=detail,
            spread=None if ratio is None else ratio.spread,
            others=others,
            disturbed=timing.disturbed(ratio, others),
        )

    def register(measure: Callable[[], Found]) -> Callable[[], Found]:
        ROWS[measure.__name__] = functools.partial(judged, measure)
        return measure

    return register


def _milliseconds(times: Times, *names: str) -> dict[str, Any]:
    """Returns the median time of a step of each call, as details."""
    medians = zip(names, times.medians(), strict=True)
    return {f"{name}_ms_per_step": 1e3 * seconds for name, seconds in medians}


# ResNet-20 with EvoNorm on 32×32×3, batch 32, of 16 clients.

_CLIENTS, _BATCH = 16, 32
_FEW = 3  # repetitions of slow calls


@dataclasses.dataclass(frozen=True, eq=False)
class _Learners:
    """Clients of one architecture that train alone on made samples.

    Attributes:
      model: the architecture.
      arrays: the clients' parameters, inputs and labels, with a leading client axis.
    """

    model: ClientModel
    arrays: tuple[Any, jax.Array, jax.Array]

    @classmethod
    def made(
        cls, model: ClientModel, num_clients: int, batch_size: int, shape: tuple[int, ...]
    ) -> _Learners:
        """Makes clients with samples of a shape."""
        inputs = jax.random.normal(jax.random.key(1), (num_clients, batch_size, *shape))
        labels = jax.random.randint(
            jax.random.key(2), (num_clients, batch_size), 0, model.num_outputs
        )
        keys = jax.random.split(jax.random.key(0), num_clients)
        init = jax.jit(lambda keys, x: jax.vmap(model.init, (0, None))(keys, x)[0])
        return cls(model, (init(keys, inputs[0, :1]), inputs, labels))

    def step(self, params: Any, inputs: jax.Array, labels: jax.Array) -> Any:
        """Takes one client's training step: forward pass, backward pass, SGD."""

        def loss(params: Any) -> jax.Array:
            outputs, _ = self.model.apply(params, {}, inputs, jax.random.key(0))
            mask = jnp.ones(len(labels))
            return private_cross_entropy(outputs.logits[:, 0], labels, mask, 0.0)

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    def each(self) -> list[Any]:
        """Returns the arrays of each client."""
        return [jax.tree.map(lambda a, i=i: a[i], self.arrays) for i in range(len(self.arrays[2]))]

    def together(self, count: int, execution: Execution = AT_ONCE) -> Callable[[], Any]:
        """Returns a call of `count` steps of all clients, in a loop as in the engine."""

        @jax.jit
        def steps(arrays: Any, count: jax.Array) -> Any:
            params, *samples = arrays
            with under(execution):
                return jax.lax.fori_loop(
                    0, count, lambda _, p: over_clients(self.step)(p, *samples), params
                )

        arrays = jax.device_put(self.arrays, execution.sharding(by_client=True))
        return lambda: steps(arrays, jnp.int32(count))

    def flops(self) -> float:
        """Returns the FLOPs of a step of the first client."""
        return _flops(jax.jit(self.step).lower(*self.each()[0]).compile())


def _flops(program: Any) -> float:
    return program.cost_analysis()["flops"]


@functools.cache
def _resnet20() -> _Learners:
    shape = (32, 32, 3)
    model = ClientModel(build_backbone("resnet20", "evonorm", shape), 1, 10)
    return _Learners.made(model, _CLIENTS, _BATCH, shape)


@functools.cache
def _one_resnet20() -> tuple[Any, Any]:
    """Returns one client's step and forward pass with XLA's own convolution, compiled."""
    clients = _resnet20()
    params, inputs, labels = clients.each()[0]
    with mock.patch.object(resnet, "Conv", nn.Conv):
        step = jax.jit(clients.step).lower(params, inputs, labels).compile()
        forward = jax.jit(lambda p, x: clients.model.apply(p, {}, x)[0])
        return step, forward.lower(params, inputs).compile()


@functools.cache
def _two_steps(algorithm: str) -> Callable[[], Any]:
    """Returns a call of two steps of a run of all 16 clients on a ring."""
    clients = images_of_clients(_CLIENTS, norm="evonorm")
    return dispatches(prepare("ring", clients, algorithm, batch_size=_BATCH, steps=1000), 2)


@functools.cache
def _ceiling(dtype: str = "float32") -> tuple[Callable[[], Any], float]:
    """Returns a large matrix product on the whole machine, whose rate is the ceiling; its FLOPs."""
    size = 4096 if default_platform() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a), 2.0 * size**3


def _against_the_ceiling(steps: Callable[[], Any], flops: float, num_steps: int = 2) -> Found:
    """Returns the ratio of the FLOP rate of a call of some steps to that of the matmul ceiling.

    Both rates are per processor second.
    """
    product, flops_of_product = _ceiling()
    times = in_turn(steps, product, repetitions=7, steps=(num_steps, 1))
    each = times.processors / np.array([flops, flops_of_product])  # per FLOP
    seconds, product_seconds = times.medians()
    ceiling = flops_of_product / product_seconds
    detail = {
        "step_seconds": seconds,
        "gflop": flops / 1e9,
        "ceiling_gflops": ceiling / 1e9,
        "fraction_by_the_clock": flops / seconds / ceiling,
        "cores_busy": dict(zip(("step", "ceiling"), times.cores(), strict=True)),
    }
    return Ratio.of(each[:, 1], each[:, 0]), detail


@row("times faster", at_least=1.3, platform="cpu")
def cpu_vs_loop() -> Found:
    """Compares the engine's step with a Python loop over a jitted single-client step."""
    one_client, each = _one_resnet20()[0], _resnet20().each()
    loop = lambda: [one_client(*arrays) for arrays in each]  # noqa: E731
    times = in_turn(_two_steps("isolated"), loop, repetitions=5, steps=(2, 1))
    return times.ratio(1, 0), _milliseconds(times, "engine", "loop")


@row("times faster", at_least=5, platform="cpu")
def cpu_vs_vmap() -> Found:
    """Compares the engine's step with vmap of the plain convolution.

    The latter is measured outside a loop, which is its best case.
    """
    clients = _resnet20()
    with mock.patch.object(resnet, "Conv", nn.Conv):
        plain = jax.jit(jax.vmap(clients.step)).lower(*clients.arrays).compile()
    vmapped = functools.partial(plain, *clients.arrays)
    times = in_turn(_two_steps("isolated"), vmapped, repetitions=_FEW, steps=(2, 1))
    return times.ratio(1, 0), _milliseconds(times, "engine", "vmap")


@row("of the ceiling", at_least=0.65, platform="cpu")
def cpu_floor() -> Found:
    """Returns the fraction of the matmul ceiling of isolated training.

    16 clients have ResNet-20 with EvoNorm.
    """
    return _on_a_ring("isolated", forward_passes=0)


@row("of the ceiling", at_least=0.62, platform="cpu")
def cpu_gossip() -> Found:
    """Returns the fraction of gossip with quasi-global momentum on a ring, in the setting of `cpu_floor`."""
    return _on_a_ring("qg_dsgd", forward_passes=0)


@row("of the ceiling", at_least=0.65, platform="cpu")
def cpu_ccl() -> Found:
    """Returns the fraction of CCL on a ring, in the setting of `cpu_floor`.

    CCL's cross features take two more forward passes of every client.
    """
    return _on_a_ring("ccl", forward_passes=2)


def _on_a_ring(algorithm: str, forward_passes: int) -> Found:
    step, forward = map(_flops, _one_resnet20())
    flops = _CLIENTS * (step + forward_passes * forward)
    return _against_the_ceiling(_two_steps(algorithm), flops)


class TutorialCNN(nn.Module):
    """The network of PyTorch's tutorial on CIFAR-10, with 62,006 parameters for 10 classes."""

    conv: Any = Conv

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, 32, 32, 3] to embeddings [N, 84]."""
        for channels in (6, 16):
            x = nn.relu(halve(self.conv(channels, (5, 5), padding="VALID")(x)))
        x = x.reshape(len(x), -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width)(x))
        return x


@row("of the ceiling", at_least=0.4, platform="cpu")
def cpu_cnn() -> Found:
    """Returns the fraction of the matmul ceiling of FedMD's rounds with small plain CNNs.

    10 clients take a digest step and a revisit step a round, each of 50 images of 32 × 32 pixels.
    A digest step has one more forward pass, whose logits are averaged.
    """
    clients = images_of_clients(10, TutorialCNN(), norm=None)
    algorithm = mhd.algorithms.fedmd(digest_steps=1, revisit_steps=1)
    run = prepare("complete", clients, algorithm, batch_size=50, public_batch_size=50, steps=10**4)
    one = _Learners.made(ClientModel(TutorialCNN(nn.Conv), 1, 10), 1, 50, (32, 32, 3))
    params, inputs, _ = one.each()[0]
    forward = jax.jit(lambda p, x: one.model.apply(p, {}, x)[0]).lower(params, inputs).compile()
    flops = 10 * (2 * one.flops() + _flops(forward))
    return _against_the_ceiling(dispatches(run, 40), flops, num_steps=20)


def _small_clients(model_name: str, shape: tuple[int, ...]) -> tuple[Any, Any, float]:
    """Makes 64 clients with batch 32.

    Returns:
      A call of 20 steps of all clients as in the engine, a call of one step of all, one after the
      other, and the FLOPs of one step of all.
    """
    num_clients = 64
    model = ClientModel(build_backbone(model_name, None, shape), 1, 10)
    clients = _Learners.made(model, num_clients, _BATCH, shape)
    execution = Execution(mesh=client_mesh(min(jax.device_count(), num_clients)))
    one_client, each = jax.jit(clients.step), clients.each()
    loop = lambda: [one_client(*arrays) for arrays in each]  # noqa: E731
    return clients.together(20, execution), loop, num_clients * clients.flops()


@row("times faster", at_least=6)
def small_vs_loop() -> Found:
    """Compares the engine with a loop of jitted steps, for 64 clients with the demo's MLP."""
    together, loop, flops = _small_clients("mlp", (8, 8, 1))
    product, flops_of_product = _ceiling()
    times = in_turn(together, loop, product, repetitions=21, steps=(20, 1, 1))
    engine, apart, seconds = times.medians()
    floor = flops / flops_of_product * seconds
    return times.ratio(1, 0), {
        **_milliseconds(times, "engine", "loop", "ceiling"),
        "fraction_of_the_ceiling": floor / engine,
        "ratio_at_the_ceiling": apart / floor,
    }


@row("times faster", at_least=8, platform="gpu")
def gpu_small() -> Found:
    """Compares 64 LeNet-5 clients at 28 pixels on the GPU: all at once, and one by one."""
    together, loop, _ = _small_clients("lenet5", (28, 28, 1))
    times = in_turn(together, loop, steps=(20, 1))
    return times.ratio(1, 0), _milliseconds(times, "engine", "loop")


@row("of the rate", at_least=0.8, platform="gpu")
def gpu_resnet34() -> Found:
    """Compares 8 clients' ResNet-34 at 64 pixels in bfloat16 with one client of all samples."""
    shape = (64, 64, 3)
    model = ClientModel(build_backbone("resnet34", None, shape), 1, 1000, "bfloat16")
    many, one = (_Learners.made(model, k, 1024 // k, shape) for k in (8, 1))
    product, flops_of_product = _ceiling("bfloat16")
    times = in_turn(many.together(5), one.together(5), product, repetitions=5, steps=(5, 5, 1))
    clients, client, seconds = times.medians()
    flops, ceiling = one.flops(), flops_of_product / seconds
    return times.ratio(1, 0), {
        **_milliseconds(times, "clients", "one_client", "ceiling"),
        "gflop": flops / 1e9,
        "ceiling_gflops": ceiling / 1e9,
        "clients_mfu": flops / clients / ceiling,
        "one_client_mfu": flops / client / ceiling,
    }


# Runs as the engine prepares them.


def dispatches(run: Run, steps: int) -> Callable[[], Any]:
    """Returns a call that takes `steps` more steps of a run."""
    holder = [run.advance(run.start(), 0)]

    def advance() -> Any:
        holder[0] = run.advance(holder[0], steps)
        return holder[0]

    return advance


def _compared(
    runs: Mapping[str, Run], steps: int, repetitions: int = 9, expected: float = 1.0
) -> Found:
    """Returns the ratio of the first run's time of a step to `expected` times that of the others.

    Dispatches of `steps` steps of each run are timed in turn; several others are added up.
    """
    calls = [dispatches(run, steps) for run in runs.values()]
    times = in_turn(*calls, repetitions=repetitions, steps=steps)
    others = times.clock[:, 1:].sum(axis=1)
    return Ratio.of(times.clock[:, 0], expected * others), _milliseconds(times, *runs)


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


class WideMLP(nn.Module):
    """A backbone of two hidden layers, with 199,210 parameters for images of 784 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, 28, 28, 1] to embeddings [N, 200]."""
        del train
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(200)(x))
        return x


@row("times faster", at_least=1.2, platform="cpu")
def local_steps() -> Found:
    """Compares rounds of FedAvg with a loop of calls that take the ten steps of one client each.

    64 clients have an MLP of 199,210 parameters. A further call of the loop averages; the rows of
    the loop's samples are drawn beforehand, those of the engine in every step.
    """
    clients = images_of_clients(64, WideMLP(), norm=None, count=6400, shape=(28, 28, 1))
    algorithm = mhd.algorithms.fedavg(local_steps=10)
    run = prepare("empty", clients, algorithm, batch_size=_BATCH, steps=10_000)
    (group,) = run.start().state.groups

    @jax.jit
    def one_client(params: Any, images: jax.Array, labels: jax.Array, rows: jax.Array) -> Any:
        def step(kept: Any, rows: jax.Array) -> Any:
            params, opt_state = kept

            def loss(params: Any) -> jax.Array:
                inputs = run.spec.preparation(images[rows])
                outputs, _ = group.model.apply(params, {}, inputs, jax.random.key(0))
                mask = jnp.ones(len(rows))
                return private_cross_entropy(outputs.logits[:, 0], labels[rows], mask, 0.0)

            updates, opt_state = group.optimizer.update(jax.grad(loss)(params), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        start = params, group.optimizer.init(params)
        return jax.lax.scan(step, start, rows)[0][0]

    mean = jax.jit(lambda *each: jax.tree.map(lambda *a: sum(a) / len(a), *each))
    images, labels = (np.split(a, 64) for a in (clients.data.inputs, clients.data.labels))
    rows = np.random.default_rng(0).integers(0, len(labels[0]), (64, 10, _BATCH))
    own = jax.device_put(list(zip(images, labels, rows, strict=True)), jax.devices()[0])
    kept = [jax.tree.map(lambda a: a[0], jax.device_get(group.params))]

    def loop() -> Any:
        kept[0] = mean(*(one_client(kept[0], *arrays) for arrays in own))
        return kept[0]

    times = in_turn(dispatches(run, 10), loop, repetitions=11, steps=10)
    return times.ratio(1, 0), _milliseconds(times, "engine", "loop")


_MHD_SETTINGS: dict[str, Any] = {"batch_size": _BATCH, "public_batch_size": _BATCH, "steps": 1000}


@row("times the time", at_most=1.02)
def mhd_overhead() -> Found:
    """Compares MHD with isolated training on as many samples (private + public) in a step.

    8 clients have ResNet-20 with GroupNorm, on a complete graph.
    """
    clients = images_of_clients(8)
    together = prepare("complete", clients, "mhd", **_MHD_SETTINGS)
    both = {**_MHD_SETTINGS, "batch_size": 2 * _BATCH}
    alone = prepare("empty", clients, "isolated", **both)
    return _compared({"mhd": together, "isolated": alone}, steps=1, repetitions=5)


@row("times the time", at_most=1.05)
def density_overhead() -> Found:
    """Compares MHD weighted by density ratios with MHD that follows the most confident teacher.

    8 clients have ResNet-20 with GroupNorm, on a complete graph, and learn from all neighbours.
    """
    clients = images_of_clients(8)

    def choosing(selection: str) -> Run:
        algorithm = mhd.algorithms.mhd(num_targets="all", target_selection=selection)
        return prepare("complete", clients, algorithm, **_MHD_SETTINGS)

    runs = {name: choosing(name) for name in ("density_ratio", "most_confident")}
    return _compared(runs, steps=1, repetitions=7)


@row("times the time", at_most=1.1)
def mixed() -> Found:
    """Compares a step of MHD of 4 small CNNs and 4 ResNet-8 with the sum of separate steps."""

    def of(*models: str) -> Run:
        clients = images_of_clients(4 * len(models), [name for name in models for _ in range(4)])
        return prepare("complete", clients, "mhd", **_MHD_SETTINGS)

    runs = {"mixed": of("cnn", "resnet8"), "cnn": of("cnn"), "resnet8": of("resnet8")}
    return _compared(runs, steps=2)


@row("times the time of the calls", at_most=1.3)
def dispatch() -> Found:
    """Compares a dispatch of 100 steps of the demo's MHD with 100 calls of the jitted step.

    The calls take a fixed batch.
    """
    run = prepare("complete", mhd.make_clients("digits", 8), "mhd", num_devices=1)
    state = run.start().state
    batch = draw_batch(run.data, state.key, state.client_ids, state.step, run.spec)
    graph = run.topology.at(0)
    step = jax.jit(run.algorithm.train_step)

    def one_by_one() -> Any:
        current = state
        for _ in range(100):
            current, metrics = step(current, batch, graph)
        return current, metrics

    times = in_turn(dispatches(run, 100), one_by_one, steps=100)
    return times.ratio(), _milliseconds(times, "dispatch", "calls")


@row("times the time", at_most=1.05)
def schedule() -> Found:
    """Compares the demo's MHD on a random matching for every step with one fixed matching."""
    clients = mhd.make_clients("digits", 8)
    changing = mhd.topology.random_matching(8)
    graphs = {"changing": changing, "static": changing.at(0)}
    runs = {name: prepare(graph, clients, "mhd") for name, graph in graphs.items()}
    return _compared(runs, steps=100, repetitions=31)


@row("times the time", target="none: what it costs")
def pool() -> Found:
    """Compares the demo's MHD with teachers from pools and with current teachers.

    Pools have 4 snapshots, of which one is renewed every 20 steps.
    """
    clients = mhd.make_clients("digits", 8)
    algorithms: dict[str, Any] = {
        "pool": mhd.algorithms.mhd(pool_size=4, pool_refresh=20),
        "fresh": "mhd",
    }
    runs = {name: prepare("complete", clients, chosen) for name, chosen in algorithms.items()}
    return _compared(runs, steps=100, repetitions=31)


@row("times the time", target="none: what it saves")
def numbers() -> Found:
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

    pairs = [(seconds([settings]), seconds([[one] for one in settings])) for _ in range(2)]
    together, apart = np.transpose(pairs)
    return Ratio.of(together, apart), {
        "runs": len(settings),
        "together_seconds": together,
        "apart_seconds": apart,
    }


@row("times linear growth", at_most=1.25)
def load() -> Found:
    """Compares a step of 1,000 clients with four times a step of 250: MLPs, MHD.

    The graph is random regular of degree 4.
    """
    runs = {}
    for num_clients in (1000, 250):
        clients = images_of_clients(
            num_clients, "mlp", norm=None, count=40 * num_clients, shape=(8, 8, 1)
        )
        graph = mhd.topology.random_regular(num_clients, degree=4)
        runs[f"clients_{num_clients}"] = prepare(graph, clients, "mhd", steps=10_000)
    compiled = [compilation(run) for run in runs.values()]
    ratio, detail = _compared(runs, steps=4, repetitions=7, expected=4)
    return ratio, {
        **detail,
        "compile_seconds": [seconds for seconds, _ in compiled],
        "megabytes": [size / 1e6 for _, size in compiled],
    }


def compilation(run: Run) -> tuple[float, int]:
    """Returns the seconds to compile a run's dispatch, and the bytes of its state and step.

    Bytes are those of all devices together.
    """
    with no_compilation_cache():
        started = time.perf_counter()
        compiled: Any = run.lower(run.carry).compile()
        seconds = time.perf_counter() - started
    beside = run.execution.num_devices * compiled.memory_analysis().temp_size_in_bytes
    return seconds, num_bytes(run.carry) + beside


class _Glance(nn.Module):
    """A backbone of one layer on every fourth pixel, so small that a step waits for data."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        return nn.relu(nn.Dense(16)(x[:, ::4, ::4].reshape(x.shape[0], -1)))


@row("of the rate", at_least=0.8)
def streamed() -> Found:
    """Compares streaming from the host with data on the device, for MHD of 8 tiny clients.

    The images have CIFAR-10's shape.
    """
    clients = images_of_clients(8, _Glance(), norm=None, count=50_000)
    runs = {
        where: prepare("complete", clients, "mhd", data_placement=where, **_MHD_SETTINGS)
        for where in ("device", "host")
    }
    return _compared(runs, steps=200)


@row("times the time", at_most=1.5)
def compile_growth() -> Found:
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
        many, few = np.transpose([(seconds(64), seconds(4)) for _ in range(_FEW)])
    return Ratio.of(many, few), {"seconds_64": many, "seconds_4": few}


@row("of the first", at_most=0.25)
def compile_cache() -> Found:
    """Returns the ratio of a second start's compilation time to the first's, with the disk cache.

    Each start is a process with another hash seed, which changes the order of Python's sets; the
    first start is followed by two that find its programs.
    """
    program = "from experiments import train; from mhd_jax.cli.launch import run; run(train.main)"

    def compile_seconds(folder: pathlib.Path, hash_seed: int) -> float:
        workdir = folder / str(hash_seed)
        arguments = [f"--workdir={workdir}", f"--compilation_cache={folder}/cache", "--steps=1"]
        command = [sys.executable, "-c", program, *arguments]
        environ = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        subprocess.run(command, check=True, capture_output=True, env=environ)
        summary = json.loads((workdir / "summary.json").read_text())
        return float(summary["timing"]["compile_seconds"])

    starts = []
    for again in range(_FEW):
        with tempfile.TemporaryDirectory() as folder:
            seeds = range(3 * again, 3 * again + 3)
            starts.append([compile_seconds(pathlib.Path(folder), seed) for seed in seeds])
    first, later = np.array(starts)[:, :1], np.array(starts)[:, 1:]
    return Ratio.of(later, first), {"first_seconds": first, "second_seconds": later}


@row("seconds", at_most=3.0)
def first_step() -> Found:
    """Measures the wait from the command `train` to its first step, where programs are cached.

    It holds imports, tracing, and the loading of programs; the details tell the wait of the first
    start of all, which compiles them.
    """

    def seconds(cache: pathlib.Path, again: int) -> float:
        arguments = [f"--workdir={cache / str(again)}", f"--compilation_cache={cache}", "--steps=1"]
        command = [sys.executable, "-m", "experiments.train", *arguments]
        started = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as train:
            lines = iter(train.stderr or ())
            if not any(b"compiled in" in line for line in lines):
                raise RuntimeError("train took no step")
            waited = time.perf_counter() - started
            for _ in lines:  # it ends when it may
                pass
        return waited

    with tempfile.TemporaryDirectory() as folder:
        cold, *warm = [seconds(pathlib.Path(folder), again) for again in range(_FEW + 1)]
    return float(np.median(warm)), {"cold_seconds": cold, "warm_seconds": warm}


@row("of state and activations", at_most=1.3)
def memory() -> Found:
    """Measures the memory of a step of MHD in chunks of one client, without the data.

    8 clients have ResNet-20 with GroupNorm.
    """
    clients = images_of_clients(8)
    run = prepare("complete", clients, "mhd", client_chunk=1, num_devices=1, **_MHD_SETTINGS)
    analysis: Any = run.lower(run.carry).compile().memory_analysis()
    state = num_bytes(run.carry)
    needs = estimate(run.clients, run.algorithm, run.spec)
    compiled, activations = analysis.temp_size_in_bytes + state, max(needs.private, needs.public)
    return compiled / (state + activations), {
        "compiled_megabytes": compiled / 1e6,
        "state_megabytes": state / 1e6,
        "activations_megabytes": activations / 1e6,
    }


@row("bytes a step beside predictions", at_most=1024)
def sharded() -> Found:
    """Counts the bytes that cross devices in a step of MHD beside the predictions.

    Parameters would be more than the target allows.
    """
    if jax.device_count() == 1:
        return None, {"reason": "there is one device"}
    clients = mhd.make_clients("digits", 8)
    run = prepare("complete", clients, "mhd", steps=10)
    text = run.lower(run.carry).compile().as_text()
    pattern = r"= (\w+)\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)"
    found = [
        (kind, tuple(int(n) for n in dims.split(",") if n))
        for kind, dims in re.findall(pattern, str(text))
    ]
    params = {leaf.shape for leaf in jax.tree.leaves(run.carry.state.groups) if leaf.ndim > 1}
    beside = [dims for _, dims in found if 64 not in dims or dims in params]  # 64 predictions
    detail = {"collectives": [f"{kind}{list(dims)}" for kind, dims in found]}
    return 4 * sum(int(np.prod(dims)) for dims in beside), detail


# What a TPU's compiler says of 8 clients on as many chips, and of 1,024 on 256. No TPU is needed.

_ON_TPUS = 64  # public samples


@functools.cache
def _on_tpus(num_clients: int, target: str) -> Plan:
    """Plans MHD of clients with ResNet-34 on 64 × 64 pixels, in bfloat16, with 64 public samples."""
    images = made_images(45 * num_clients, (64, 64, 3), 200)
    return mhd.plan(
        *(
            "ring",
            mhd.make_clients(images, num_clients, "resnet34", partition="iid"),
            "mhd",
            target,
        ),
        batch_size=_BATCH,
        public_batch_size=_ON_TPUS,
        compute_dtype="bfloat16",
        optimizer=mhd.optim.SGD(momentum=0.9),
    )


def _where_tpus_are_known(measure: Callable[[], Found]) -> Callable[[], Found]:
    """Makes a row say why it measures nothing, where the TPU's compiler is missing."""

    @functools.wraps(measure)
    def measured() -> Found:
        if importlib.util.find_spec("libtpu") is None:
            return None, {"reason": 'libtpu is not installed: pip install "jax[tpu]"'}
        return measure()

    return measured


@row("of a chip's memory", at_most=1)
@_where_tpus_are_known
def tpu_fits() -> Found:
    """Returns the share of a v5e's memory that 4 clients of 1,024 take on each of 256 chips."""
    plan = _on_tpus(1024, "tpu:v5e:16x16")
    return sum(plan.memory.values()) / plan.capacity, {"megabytes": _megabytes(plan.memory)}


@row("of what crosses is predictions", at_least=0.999)
@_where_tpus_are_known
def tpu_traffic() -> Found:
    """Returns the share of bytes that are predictions, of those that cross chips in a step of MHD."""
    plan = _on_tpus(8, "tpu:v5e:2x4")
    received = {
        f"{each.kind} {each.dtype}{list(each.shape)}": each.received for each in plan.crossings
    }
    predictions = sum(each.received for each in _predictions(plan))
    return predictions / sum(received.values()), {"bytes": received}


@row("of what an all-gather would bring, on a ring of 8 chips", at_most=0.3)
@_where_tpus_are_known
def tpu_neighbours() -> Found:
    """Returns how much of all clients' predictions a chip receives, where it has two neighbours."""
    plan = _on_tpus(8, "tpu:v5e:2x4")
    received = sum(each.received for each in _predictions(plan))
    each = [c.received / c.times for c in _predictions(plan)]  # of one client
    kinds = sorted({c.kind for c in _predictions(plan)})
    return received / (7 * sum(each)), {"bytes": received, "by": kinds}


def _predictions(plan: Plan) -> list[Any]:
    """Returns those of a plan's crossings that are of public samples."""
    return [each for each in plan.crossings if each.shape[1:2] == (_ON_TPUS,)]


@row("times its arithmetic at the peak", at_most=4)
@_where_tpus_are_known
def tpu_step() -> Found:
    """Returns the estimated time of a step of MHD over that of its arithmetic at the chip's peak."""
    plan = _on_tpus(8, "tpu:v5e:2x4")
    step, floor = plan.step_seconds, plan.floor_seconds
    return step / floor, {  # type: ignore[operator]  # a v5e has both
        "step_ms": 1e3 * step,  # type: ignore[operator]
        "floor_ms": 1e3 * floor,  # type: ignore[operator]
        "shares": plan.shares,
    }


def _megabytes(parts: Mapping[str, int]) -> dict[str, float]:
    return {part: size / 1e6 for part, size in parts.items()}


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Disables JAX's compilation cache inside the block, so that compilation can be timed."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


_ROWS = flags.DEFINE_list("rows", list(ROWS), "Rows to measure.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the rows as JSON.")
_RECORD = flags.DEFINE_bool(
    "record",
    False,
    "Whether to keep the rows in experiments/results/bench, by version and machine.",
)
_COMPARE = flags.DEFINE_string(
    "compare", None, "Earlier rows, of --output or --record: tells what moved beyond its spread."
)


def main() -> None:
    """Measures the rows that the flags name."""
    unknown = [name for name in _ROWS.value if name not in ROWS]
    if unknown or not _ROWS.value:
        raise mhd.ConfigError(f"--rows takes {', '.join(ROWS)}; unknown: {', '.join(unknown)}.")
    earlier = speed.read(pathlib.Path(_COMPARE.value)) if _COMPARE.value else None
    output = file_here(_OUTPUT.value, "--output") if _OUTPUT.value else None
    rows: list[Row] = []
    for name in _ROWS.value:
        rows.append(ROWS[name]())
        measured = [dataclasses.asdict(each) for each in rows]
        if output is not None:  # after every row, so that none is lost
            write_json(output, measured)
        if _RECORD.value:
            speed.keep(measured, speed.path_here())
    headings = ("row", "value", "spread", "unit", "target", "met", "others")
    cells = [_cells(each) for each in rows]
    launch.console().print(tables.rich(headings, cells, speed.machine()))
    if earlier is not None:
        lines = speed.compared(earlier, [dataclasses.asdict(each) for each in rows])
        launch.console().print(tables.rich(speed.HEADINGS, lines, f"against {_COMPARE.value}"))


def _cells(found: Row) -> list[str]:
    return [
        found.row,
        "–" if found.value is None else f"{found.value:.2f}",
        "–" if found.spread is None else "{:.2f}–{:.2f}".format(*found.spread),
        found.unit,
        found.target,
        {True: "yes", False: "no", None: "–"}[found.met],
        f"{found.others:.0%}{', disturbed' if found.disturbed else ''}",
    ]


if __name__ == "__main__":
    launch.run(main)
