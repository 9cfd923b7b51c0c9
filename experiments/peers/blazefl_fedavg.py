"""BlazeFL's own federated averaging, tuned: 10 clients with a plain CNN for images of 32 × 32 pixels.

In each round every client takes ten steps of 50 of its 500 images, which are in memory as the
network takes them. Clients are shared by as many threads as there are cores, each of which
computes alone; a pool of processes would be started anew in every round.
"""

import enum
import importlib.metadata
import os

import torch
from blazefl.contrib import (
    FedAvgBaseServerHandler,
    FedAvgPartitionType,
    FedAvgThreadPoolClientTrainer,
)
from torch.utils.data import DataLoader, TensorDataset
from torch_fedmd import cnn
from turns import take_turns

_CLIENTS, _BATCH, _SAMPLES, _ROUNDS = 10, 50, 500, 2


class _Models(enum.StrEnum):
    CNN = "cnn"


class _OneModel:
    def select_model(self, model_name):
        return {_Models.CNN: cnn}[model_name]()


class _Made:
    """Random images of each client."""

    def __init__(self):
        torch.manual_seed(0)
        self.clients = [
            TensorDataset(torch.randn(_SAMPLES, 3, 32, 32), torch.randint(10, (_SAMPLES,)))
            for _ in range(_CLIENTS)
        ]

    def get_dataset(self, type_, cid):
        assert type_ == FedAvgPartitionType.TRAIN
        return self.clients[cid]

    def set_dataset(self, type_, cid, dataset):
        pass  # samples do not change

    def get_dataloader(self, type_, cid, batch_size=None, generator=None):
        samples = self.get_dataset(type_, cid)
        return DataLoader(samples, batch_size=batch_size, shuffle=True, generator=generator)


def main() -> None:
    """Takes some rounds in each turn."""
    torch.set_num_threads(1)
    models, data = _OneModel(), _Made()
    server = FedAvgBaseServerHandler(
        models, _Models.CNN, data, 10**9, _CLIENTS, 1.0, "cpu", _BATCH, seed=0
    )
    clients = FedAvgThreadPoolClientTrainer(
        *(models, _Models.CNN, data, "cpu", _CLIENTS, 1, _BATCH, 0.1),
        seed=0,
        num_parallels=len(os.sched_getaffinity(0)),
    )

    def work() -> None:
        for _ in range(_ROUNDS):
            clients.local_process(server.downlink_package(), server.sample_clients())
            for package in clients.uplink_package():
                server.load(package)

    versions = {"blazefl": importlib.metadata.version("blazefl"), "torch": torch.__version__}
    take_turns(work, versions)


if __name__ == "__main__":
    main()
