"""Labelled evaluation samples: all on the device, or streamed from the host in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import struct
from jax import Array

from mhd_jax.core.client_axis import AT_ONCE, Execution, place
from mhd_jax.data.dataset import take
from mhd_jax.engine.stream import ahead

PyTree = Any


@struct.dataclass
class EvaluationSet:
    """Evaluation samples in n chunks: `inputs` as stored [n, N, ...], `labels`, `mask` [n, N]."""

    inputs: PyTree
    labels: Array
    mask: Array

    def parts(self) -> Iterator[EvaluationSet]:
        """Yields the whole set as one part."""
        yield self


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedEvaluationSet:
    """Evaluation samples that stay on the host until their chunk is evaluated.

    Attributes:
      inputs: samples as stored [M, ...].
      labels: int32 [M].
      batch_size: the most samples of a chunk.
      execution: decides on which devices chunks are placed.
    """

    inputs: PyTree
    labels: np.ndarray
    batch_size: int
    execution: Execution

    def parts(self) -> Iterator[EvaluationSet]:
        """Yields each chunk, placed on the devices, as a set with one chunk."""
        count, batch_size = _chunks(len(self.labels), self.batch_size)

        def chunk(number: int) -> EvaluationSet:
            rows = np.arange(number * batch_size, (number + 1) * batch_size)
            return _chunk(self.inputs, self.labels, rows[None])

        for samples in ahead(chunk, 0, count):
            yield place(samples, self.execution, by_client=False)


def evaluation_set(
    inputs: PyTree, labels: np.ndarray, batch_size: int, execution: Execution = AT_ONCE
) -> EvaluationSet:
    """Returns samples on the device in chunks of at most `batch_size`, the last one padded."""
    count, batch_size = _chunks(len(labels), batch_size)
    rows = np.arange(count * batch_size).reshape(count, batch_size)
    return place(_chunk(inputs, labels, rows), execution, by_client=False)


def _chunks(num_samples: int, most: int) -> tuple[int, int]:
    """Returns the number of chunks, and the samples in each."""
    count = -(-num_samples // most)
    return count, -(-num_samples // count)


def _chunk(inputs: PyTree, labels: np.ndarray, rows: np.ndarray) -> EvaluationSet:
    """Returns the samples of `rows` [n, N]; rows beyond the last sample are masked."""
    exists = rows < len(labels)
    rows = np.where(exists, rows, 0)
    found: Any = take(inputs, rows), labels[rows], exists  # still on the host
    return EvaluationSet(*found)
