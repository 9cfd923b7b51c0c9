"""What many tests share: tiny clients, tiny batches."""

import atexit
import dataclasses
import gc
import os
import shutil
import tempfile

# Many small programs of few steps: compiling them well would take longer than running them badly,
# and the suite's processes share what they compile. Fusion emitters alone triple the time, and
# code in parts for several threads costs a fifth more.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mhd_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.clients import ClientGroup, Clients
from mhd_jax.types import Batch

gc.set_threshold(10_000)  # tracing makes many objects and little garbage

NUM_CLASSES = 3
FEATURES = 4


class Linear(nn.Module):
    """A backbone of one matrix without bias: [N, F] -> [N, D]."""

    width: int = 5

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(self.width, use_bias=False, param_dtype=x.dtype)(x)


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
    return clients.with_defaults(optimizer or optax.sgd(0.1))


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


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Lets a file's programs go at its end: files share few, and all of them weigh gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def float64():
    """64-bit arithmetic, for comparisons with NumPy."""
    with jax.enable_x64(True):
        yield
