"""`Samples`: what a run trains and evaluates on, placed on its devices when it is first used."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from mhd_jax.clients import Clients
from mhd_jax.core.client_axis import Execution
from mhd_jax.core.types import PyTree
from mhd_jax.data.batching import BatchSpec, DeviceData
from mhd_jax.engine import placing
from mhd_jax.engine.evaluation import (
    EvaluationSet,
    StreamedEvaluationSet,
    evaluation_set,
    unplaced_set,
)
from mhd_jax.engine.steps import device_data, unplaced_data
from mhd_jax.engine.stream import Block, Stream

ToEvaluate = EvaluationSet | StreamedEvaluationSet


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a run, and of all runs that `dataclasses.replace` makes of it.

    Attributes:
      clients: the clients that train, padded to fill the devices.
      spec: the sizes of a step's batch.
      execution: decides on which devices samples are placed.
      seed: the seed of training.
      on_host: whether all samples stay on the host, from which they are streamed.
      at_once: the most samples that are evaluated at once.
    """

    clients: Clients
    spec: BatchSpec
    execution: Execution
    seed: int
    on_host: bool
    at_once: int

    @functools.cached_property
    def stream(self) -> Stream | None:
        """The stream of training data; None for data on the devices."""
        if not self.on_host:
            return None
        return Stream(self.clients, self.spec, jax.random.key(self.seed), self.execution)

    @property
    def data(self) -> DeviceData | Block:
        """The training data on the devices; of data that are streamed, the block of step 0."""
        return self._on_devices if self.stream is None else self.stream.block_at(0)[0]

    @functools.cached_property
    def _on_devices(self) -> DeviceData:
        return device_data(self.clients, self.execution)

    @functools.cached_property
    def data_shapes(self) -> DeviceData | Block:
        """Shapes, types and shardings of `data`."""
        if self.stream is not None:
            return self.stream.shapes()
        data = unplaced_data(self.clients, self.execution.num_shards)
        return placing.shapes(data, self.execution)

    @functools.cached_property
    def test(self) -> ToEvaluate:
        """The test samples."""
        return self._to_evaluate(*self._labelled()[0])

    @functools.cached_property
    def validation(self) -> ToEvaluate | None:
        """The validation samples; None if there are none."""
        return self._to_evaluate(*self._labelled()[1]) if len(self.clients.validation) else None

    def release(self) -> None:
        """Lets go of what is on the devices; what is used again is placed again."""
        for name in ("stream", "_on_devices", "test", "validation"):
            self.__dict__.pop(name, None)

    def shapes(self) -> list[PyTree]:
        """Returns shapes, types and shardings of all that is on the devices throughout the run."""
        if self.on_host:
            return [self.data_shapes]
        sets = [unplaced_set(*labelled, self.at_once) for labelled in self._labelled()]
        return [self.data_shapes, placing.shapes(sets, self.execution)]

    def _labelled(self) -> list[tuple[PyTree, np.ndarray, np.ndarray]]:
        """Returns inputs, labels and targets of the test set and of the validation set, if any."""
        data, rows = self.clients.data, self.clients.validation
        found = [(data.test_inputs, data.test_labels, data.test_targets)]
        if len(rows):
            found.append((*self.clients.validation_samples(), data.targets[rows]))
        return found

    def _to_evaluate(self, inputs: PyTree, labels: np.ndarray, targets: np.ndarray) -> ToEvaluate:
        make = StreamedEvaluationSet if self.on_host else evaluation_set
        return make(inputs, labels, targets, self.at_once, self.execution)
