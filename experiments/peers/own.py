"""This package's side of the races: the same work as each peer's script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import mhd_jax as mhd
from experiments.benchmark import TutorialCNN, WideMLP, dispatches, images_of_clients
from experiments.peers.turns import take_turns
from mhd_jax.cli import launch
from mhd_jax.engine.prepare import prepare

_PLAIN = mhd.optim.SGD(momentum=0)


def fedmd_cnn() -> Callable[[], Any]:
    """20 rounds of `torch_fedmd`."""
    clients = images_of_clients(10, TutorialCNN(), norm=None)
    algorithm = mhd.algorithms.fedmd(digest_steps=1, revisit_steps=1)
    return _steps(40, "complete", clients, algorithm, batch_size=50, public_batch_size=50)


def fedavg_mlp() -> Callable[[], Any]:
    """A round of `fedjax_fedavg`."""
    clients = images_of_clients(64, WideMLP(), norm=None, count=7111, shape=(28, 28, 1))
    algorithm = mhd.algorithms.fedavg(local_steps=10)
    return _steps(10, "empty", clients, algorithm, batch_size=32)


def fedavg_cnn() -> Callable[[], Any]:
    """Two rounds of `blazefl_fedavg`."""
    clients = images_of_clients(10, TutorialCNN(), norm=None, count=5556)
    algorithm = mhd.algorithms.fedavg(local_steps=10)
    return _steps(20, "empty", clients, algorithm, batch_size=50)


def _steps(count: int, topology: str, clients: Any, algorithm: Any, **settings: Any) -> Any:
    run = prepare(topology, clients, algorithm, optimizer=_PLAIN, steps=10**6, **settings)
    advance = dispatches(run, count)
    return lambda: jax.block_until_ready(advance())


def main(arguments: list[str]) -> None:
    """Does the work of the given name, in turns."""
    work = {each.__name__: each for each in (fedmd_cnn, fedavg_mlp, fedavg_cnn)}[arguments[0]]
    take_turns(work(), {"mhd_jax": mhd.__version__, "jax": jax.__version__})


if __name__ == "__main__":
    launch.run(main, takes_arguments=True)
