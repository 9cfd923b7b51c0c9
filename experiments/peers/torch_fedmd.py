"""A bare PyTorch loop of FedMD's rounds, as one would write it by hand: a process for each core.

10 clients have a plain CNN for images of 32 × 32 pixels. In each round all predict 50 public
images, take a step towards the mean of all predictions, and one on 50 images of their own.
Processes have a thread each; they exchange predictions through shared memory.
"""

import itertools
import os

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional
from turns import take_turns

_CLIENTS, _BATCH, _ROUNDS, _PUBLIC, _PRIVATE = 10, 50, 20, 400, 360


def cnn() -> nn.Module:
    """Returns a network of two convolutions and three dense layers, with 62,006 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def _rounds(own, predictions, public_rows, gate, start, end):
    """Takes the rounds of some clients, each time that `start` opens."""
    torch.set_num_threads(1)
    torch.manual_seed(own.start)
    public = torch.randn(_PUBLIC, 3, 32, 32)
    data = {k: (torch.randn(_PRIVATE, 3, 32, 32), torch.randint(10, (_PRIVATE,))) for k in own}
    models = {k: cnn() for k in own}
    optimizers = {k: torch.optim.SGD(models[k].parameters(), lr=0.1) for k in own}

    def step(k, loss):
        optimizers[k].zero_grad()
        loss.backward()
        optimizers[k].step()

    while True:
        start.wait()
        for turn in range(_ROUNDS):
            x = public[public_rows[turn]]
            with torch.no_grad():
                for k in own:
                    predictions[k] = models[k](x)
            gate.wait()
            consensus = predictions.mean(0)
            gate.wait()  # nobody predicts again before all have read
            for k in own:
                step(k, functional.l1_loss(models[k](x), consensus))
                images, labels = data[k]
                rows = torch.randint(_PRIVATE, (_BATCH,))
                step(k, functional.cross_entropy(models[k](images[rows]), labels[rows]))
        end.wait()


def main() -> None:
    """Starts a process for each core and has them work in turns."""
    cores = len(os.sched_getaffinity(0))
    predictions = torch.zeros(_CLIENTS, _BATCH, 10).share_memory_()
    public_rows = torch.randint(_PUBLIC, (_ROUNDS, _BATCH))
    start, end = mp.Barrier(cores + 1), mp.Barrier(cores + 1)
    gate = mp.Barrier(cores)
    bounds = [_CLIENTS * core // cores for core in range(cores + 1)]
    for low, high in itertools.pairwise(bounds):
        arguments = (range(low, high), predictions, public_rows, gate, start, end)
        mp.Process(target=_rounds, args=arguments, daemon=True).start()

    def work() -> None:
        start.wait()
        end.wait()

    take_turns(work, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
