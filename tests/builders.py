"""What many tests share: tiny clients, tiny batches, comparisons of trees."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import mhd_jax as mhd
from mhd_jax.clients import ClientGroup, Clients
from mhd_jax.core import random
from mhd_jax.core.types import Batch
from mhd_jax.training.groups import all_params, all_stats, forward

ROOT = pathlib.Path(__file__).parent.parent
NUM_CLASSES = 3
FEATURES = 4
PLAIN_SGD = optax.sgd(0.1)  # one object, so that equal programs compile once
SMALL = [
    "--steps=6",
    "--eval_every=3",
    "--batch_size=4",
    "--num_clients=3",
    "--model=mlp_small",
]  # flags of a tiny run


def short(names, *kept):
    """A test's parameters, of which the suite's short form has these alone; make slow has the others."""
    return [pytest.param(name, marks=[] if name in kept else [pytest.mark.slow]) for name in names]


def thinned(cases, every):
    """A test's parameters, of which the suite's short form has each n-th; make slow has the others."""
    given = [case if hasattr(case, "marks") else pytest.param(*_listed(case)) for case in cases]
    return [
        pytest.param(
            *case.values,
            marks=[*case.marks, *([pytest.mark.slow] if i % every else [])],
            id=case.id,
        )
        for i, case in enumerate(given)
    ]


def _listed(case):
    return case if type(case) is tuple else [case]  # optax's optimizers are tuples too


def start_python(*arguments, cwd=None, stdout=subprocess.PIPE, **variables):
    """Starts Python as a process of its own, outside any cluster."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables,
    )


def python(*arguments, timeout=200, **options):
    """Runs Python to its end as a process of its own."""
    process = start_python(*arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()  # which does nothing to one that has ended
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def wait_until(condition, *processes):
    """Waits for a condition for as long as all the processes live."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.002)


def contents(folder):
    """What all files of a folder hold, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def page_of(folder):
    """The text of a folder's report."""
    return (folder / "report.html").read_text()


class Linear(nn.Module):
    """A backbone of one matrix without bias: [N, F] -> [N, D]."""

    width: int = 5

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(self.width, use_bias=False, param_dtype=x.dtype)(x)


class Dropping(nn.Module):
    """`Linear`, half of whose embedding is dropped in training mode."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(5, use_bias=False, param_dtype=x.dtype)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


def dropped(purpose, step, num_samples, seed=0, num_clients=4):
    """What `Dropping` multiplies embeddings by in a run's pass for `purpose`, 0 or 2, [K, N, D]."""
    ones = {"params": {"Dense_0": {"kernel": jnp.ones((FEATURES, 5)) / FEATURES}}}

    def of_one(key):
        inputs = jnp.ones((num_samples, FEATURES))
        return Dropping().apply(ones, inputs, train=True, rngs={"dropout": key})

    keys = random.client_keys(jax.random.key(seed), purpose, jnp.arange(num_clients), step)
    factors = np.asarray(jax.vmap(of_one)(keys))
    assert set(factors.flat) == {0, 2}
    return factors


def tiny_dataset(num_samples=60, seed=0):
    """Three Gaussian blobs in four dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples) % NUM_CLASSES
    inputs = rng.normal(size=(num_samples, FEATURES)) + 4 * np.eye(FEATURES)[labels]
    return mhd.data.arrays(inputs.astype(np.float32), labels)


def tiny_clients(num_clients=4, model=None, optimizer=None, groups=None, **kwargs) -> Clients:
    """Clients with a linear backbone; `groups` splits them as [(backbone, members), ...]."""
    kwargs.setdefault("partition", mhd.partition.iid())
    clients = mhd.make_clients(
        tiny_dataset(kwargs.pop("num_samples", 60)), num_clients, model or Linear(), **kwargs
    )
    if groups is not None:
        clients = dataclasses.replace(
            clients,
            groups=tuple(ClientGroup(str(i), b, tuple(m)) for i, (b, m) in enumerate(groups)),
        )
    return clients.with_defaults(optimizer or PLAIN_SGD)


OF_THE_HOST = (
    "eval_every",
    "steps_per_dispatch",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "fall_back",
    "callbacks",
    "progress",
)


def simulate_in(workdir, topology, clients, algorithm, **settings):
    """`mhd.simulate` in a folder, but for the report, which would take longer than a tiny run."""
    of_the_host = {name: settings.pop(name) for name in OF_THE_HOST if name in settings}
    (result,) = mhd.simulate_many(
        [{"topology": topology, "clients": clients, "algorithm": algorithm, **settings}],
        workdirs=[workdir],
        write_reports=False,
        **of_the_host,
    )
    return result


class SignalAt(mhd.Callback):
    """Sends this process a signal once a run has come to a step."""

    def __init__(self, step, number=signal.SIGINT):
        self._step, self._number = step, number

    def on_steps(self, step, steps_per_second):
        if step == self._step:
            signal.raise_signal(self._number)


def interrupt(record):
    """A callback that ends a run at its first evaluation, as Control-C does."""
    raise KeyboardInterrupt


def tiny_batch(
    num_clients=4, batch_size=6, public_size=7, seed=0, dtype=jnp.float32, shared=True
) -> Batch:
    """A random batch; the last client's last sample is masked."""
    rng = np.random.default_rng(seed)
    public = (public_size,) if shared else (num_clients, public_size)
    mask = np.ones((num_clients, batch_size))
    mask[-1, -1] = 0
    return Batch(
        inputs=jnp.asarray(rng.normal(size=(num_clients, batch_size, FEATURES)), dtype),
        labels=jnp.asarray(rng.integers(0, NUM_CLASSES, (num_clients, batch_size))),
        mask=jnp.asarray(mask, dtype),
        public_inputs=jnp.asarray(rng.normal(size=(*public, FEATURES)), dtype),
        public_indices=jnp.zeros(public, jnp.int32),
    )


def take_steps(algorithm, clients, graph, batches, state=None):
    """The states of a few steps, the one before them included, and the metrics of each.

    Without a state, the clients start anew; with one, they are not looked at.
    """
    states = [state or algorithm.init(jax.random.key(0), clients, batches[0])]
    step, metrics = jax.jit(algorithm.train_step), []
    for batch in batches:
        state, found = step(states[-1], batch, graph)
        states.append(state)
        metrics.append(found)
    return states, metrics


def of_client(state, i, part="params"):
    """One client's parameters, or another part of its group, wherever that group keeps it."""
    (group,) = [group for group in state.groups if i in group.members]
    return jax.tree.map(lambda a: a[group.members.index(i)], getattr(group, part))


def with_params(state, change):
    """The state with every parameter of its first group changed, each an array [K, ...]."""
    first, *others = state.groups
    first = first.replace(params=jax.tree.map(change, first.params))
    return state.replace(groups=(first, *others))


def public_outputs(state, batch):
    """What all clients say of their public samples in evaluation mode: arrays [K, P, ...]."""
    params, stats = all_params(state), all_stats(state)
    shared = batch.public_is_shared
    outputs, _ = forward(state, params, stats, batch.public_inputs, shared_inputs=shared)
    return jax.tree.map(np.asarray, outputs)


def softmax(z):
    """Probabilities along the last axis, in NumPy."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def assert_trees_close(a, b, **tolerance):
    """Equal structure, and values within numpy.testing's tolerance."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b
    )


def assert_trees_equal(a, b):
    """Equal structure, and values bit for bit; typed keys by their data."""

    def raw(x):
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    jax.tree.map(lambda x, y: np.testing.assert_array_equal(raw(x), raw(y)), a, b)


class Net(nnx.Module):
    """A list of layers, statistics, and a random stream in each of two dropouts."""

    def __init__(self, width, act=nnx.relu, *, rngs):
        self.layers = nnx.List(
            [nnx.Linear(FEATURES, 8, rngs=rngs), nnx.Linear(8, width, rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
        self.act = act

    def __call__(self, x):
        x = self.act(self.norm(self.layers[1](self.layers[0](x))))
        return jnp.concatenate([dropout(x) for dropout in self.dropouts], axis=1)


class Streams(nn.Module):
    """Noise from three streams, one after another."""

    names: tuple[str, ...] = ("dropout", "noise", "droppath")

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.tanh(nn.Dense(6)(x))
        if not train:
            return x
        draws = [jax.random.normal(self.make_rng(name), x.shape) for name in self.names]
        return x + sum(10.0**n * draw for n, draw in enumerate(draws))


def tiny_run(workdir, **kwargs):
    """A run of two steps in a folder."""
    sizes = {"steps": 2, "eval_every": 1, "batch_size": 4, "eval_batch_size": 5, "num_devices": 1}
    return simulate_in(workdir, "complete", tiny_clients(2), "isolated", **sizes, **kwargs)
