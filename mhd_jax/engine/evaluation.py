"""Labelled evaluation samples: all on the device, or streamed from the host in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import struct
from jax import Array

from mhd_jax.core.client_axis import AT_ONCE, Execution
from mhd_jax.engine.placing import held, loaded, place, rows_of
from mhd_jax.engine.stream import ahead

PyTree = Any


@struct.dataclass
class EvaluationSet:
    """Evaluation samples in n chunks.

    Attributes:
      inputs: as stored, [n, N, ...].
      labels: by which results are broken down, int32 [n, N].
      targets: what heads predict: the labels, or the numbers of a regression [n, N, D].
      mask: False for padding, bool [n, N].
    """

    inputs: PyTree
    labels: Array
    targets: Array
    mask: Array

    def parts(self) -> Iterator[EvaluationSet]:
        """Yields the whole set as one part."""
        yield self


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedEvaluationSet:
    """Evaluation samples that stay on the host until their chunk is evaluated.

    Attributes:
      inputs: samples as stored [M, ...].
      labels, targets: of M samples, see `EvaluationSet`.
      batch_size: the most samples of a chunk.
      execution: decides on which devices chunks are placed.
    """

    inputs: PyTree
    labels: np.ndarray
    targets: np.ndarray
    batch_size: int
    execution: Execution

    def parts(self) -> Iterator[EvaluationSet]:
        """Yields each chunk, placed on the devices, as a set with one chunk."""
        count, batch_size = _chunks(len(self.labels), self.batch_size)

        def chunk(number: int) -> EvaluationSet:
            rows = np.arange(number * batch_size, (number + 1) * batch_size)
            return loaded(_of_rows((self.inputs, self.labels, self.targets), rows[None]))

        for samples in ahead(chunk, 0, count):
            yield place(samples, self.execution)


def evaluation_set(
    inputs: PyTree,
    labels: np.ndarray,
    targets: np.ndarray,
    batch_size: int,
    execution: Execution = AT_ONCE,
) -> EvaluationSet:
    """Returns samples on the device in chunks of at most `batch_size`, the last one padded."""
    return place(unplaced_set(inputs, labels, targets, batch_size), execution)


def unplaced_set(
    inputs: PyTree, labels: np.ndarray, targets: np.ndarray, batch_size: int
) -> EvaluationSet:
    """Returns the samples of `evaluation_set`, yet to be placed."""
    count, batch_size = _chunks(len(labels), batch_size)
    rows = np.arange(count * batch_size).reshape(count, batch_size)
    return _of_rows((inputs, labels, targets), rows)


def _chunks(num_samples: int, most: int) -> tuple[int, int]:
    """Returns the number of chunks, and the samples in each."""
    count = -(-num_samples // most)
    return count, -(-num_samples // count)


def _of_rows(labelled: tuple[PyTree, np.ndarray, np.ndarray], rows: np.ndarray) -> EvaluationSet:
    """Returns the samples of `rows` [n, N], yet to be placed; rows beyond the last are masked."""
    exists = rows < len(labelled[1])
    rows = np.where(exists, rows, 0)
    found: Any = *rows_of(labelled, rows, None), held(exists, None)  # not arrays yet
    return EvaluationSet(*found)
