"""What a binary's flags come to: one frozen record, from which runs are made."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import mhd_jax as mhd
from mhd_jax.data.partition import Partition, PrimaryLabels
from mhd_jax.optim import SGD
from mhd_jax.run import prepare

_load = functools.lru_cache(maxsize=1)(mhd.data.load)  # seeds share what was read


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """A run but for its algorithm and its seed; names as on the command line."""

    dataset: str = "digits"
    data_dir: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    crop_size: int | None = None
    standardize: bool = False
    augmentation: str = ""
    augment_public: bool = False
    image_size: int | None = None
    test_fraction: float | None = None
    num_clients: int = 8
    topology: str = "complete"
    topology_options: tuple[tuple[str, Any], ...] = ()
    partition: Partition | pathlib.Path = PrimaryLabels()
    public_fraction: float = 0.1
    validation_fraction: float = 0.0
    model: str = "mlp"
    norm: str | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    public_batch_size: int = 64
    optimizer: SGD = SGD()
    eval_every: int = 200
    eval_batch_size: int = 500
    compute_dtype: str = "float32"
    checkpoint_every: int | None = None
    steps_per_dispatch: int | None = None
    data_placement: str = "auto"
    client_chunk: int | None = None
    num_devices: int | None = None

    def clients(self, seed: int) -> mhd.Clients:
        """The clients of one seed: their data split derives from it."""
        return mhd.make_clients(
            self._data(),
            self.num_clients,
            self.model,
            partition=self.partition,
            public_fraction=self.public_fraction,
            validation_fraction=self.validation_fraction,
            norm=self.norm,
            seed=seed,
        )

    def simulate(
        self,
        algorithm: mhd.Algorithm,
        seeds: Sequence[int],
        workdirs: Sequence[pathlib.Path],
        callbacks: Sequence[Any],
    ) -> list[mhd.Result]:
        """A run for each seed, saved in its folder."""
        return mhd.simulate_seeds(
            [self._topology(seed) for seed in seeds],
            [self.clients(seed) for seed in seeds],
            algorithm,
            seeds=seeds,
            **self._training(algorithm),
            checkpoint_every=self.checkpoint_every,
            steps_per_dispatch=self.steps_per_dispatch,
            workdirs=workdirs,
            callbacks=callbacks,
            progress=False,
        )

    def check(self, algorithm: mhd.Algorithm, seed: int) -> None:
        """Raises `mhd.ConfigError` where such a run could not start."""
        who = self.clients(seed)
        prepare(self._topology(seed), who, algorithm, seed=seed, **self._training(algorithm))

    def _data(self) -> mhd.data.Dataset:
        options = {
            "data_dir": self.data_dir,
            "train_split": self.train_split,
            "test_split": self.test_split,
            "image_size": self.image_size,
            "test_fraction": self.test_fraction,
        }
        data = _load(self.dataset, **{k: v for k, v in options.items() if v is not None})
        if self.crop_size is None and not self.standardize:
            return data
        return data.prepared(crop_size=self.crop_size, standardize=self.standardize)

    def _topology(self, seed: int) -> mhd.Topology:
        options = dict(self.topology_options)
        if "seed" in mhd.topology.options(self.topology):  # random graphs differ by seed
            options.setdefault("seed", seed)
        return mhd.topology.named(self.topology, self.num_clients, **options)

    def _training(self, algorithm: mhd.Algorithm) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "public_batch_size": self.public_batch_size,
            "optimizer": self.optimizer,
            "eval_every": self.eval_every,
            "eval_batch_size": self.eval_batch_size,
            "augmentation": self.augmentation,
            "augment_public": self.augment_public and algorithm.may_augment_public,
            "compute_dtype": self.compute_dtype,
            "data_placement": self.data_placement,
            "client_chunk": self.client_chunk,
            "num_devices": self.num_devices,
        }
