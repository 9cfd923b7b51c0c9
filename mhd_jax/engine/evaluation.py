"""Labelled samples on which clients are evaluated: on the device, or read chunk by chunk."""

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
    """Samples in chunks: `inputs` as stored [n, N, ...], `labels` and `mask` [n, N]."""

    inputs: PyTree
    labels: Array
    mask: Array

    def parts(self) -> Iterator[EvaluationSet]:
        """All of it, at once."""
        yield self


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedEvaluationSet:
    """Samples that stay on the host until their chunk's turn.

    Attributes:
      inputs: as stored [M, ...].
      labels: int32 [M].
      batch_size: of a chunk.
      execution: says where chunks go.
    """

    inputs: PyTree
    labels: np.ndarray
    batch_size: int
    execution: Execution

    def parts(self) -> Iterator[EvaluationSet]:
        """Its chunks, each as a set of one."""
        count, batch_size = _chunks(len(self.labels), self.batch_size)

        def chunk(number: int) -> EvaluationSet:
            rows = np.arange(number * batch_size, (number + 1) * batch_size)
            return _chunk(self.inputs, self.labels, rows[None])

        for samples in ahead(chunk, 0, count):
            yield place(samples, self.execution, by_client=False)


def evaluation_set(
    inputs: PyTree, labels: np.ndarray, batch_size: int, execution: Execution = AT_ONCE
) -> EvaluationSet:
    """Samples on the device in chunks of at most `batch_size`, the last one padded."""
    count, batch_size = _chunks(len(labels), batch_size)
    rows = np.arange(count * batch_size).reshape(count, batch_size)
    return place(_chunk(inputs, labels, rows), execution, by_client=False)


def _chunks(num_samples: int, most: int) -> tuple[int, int]:
    """How many chunks, and of how many samples each."""
    count = -(-num_samples // most)
    return count, -(-num_samples // count)


def _chunk(inputs: PyTree, labels: np.ndarray, rows: np.ndarray) -> EvaluationSet:
    """The samples in these rows [n, N]; the first one stands in for rows beyond the last."""
    exists = rows < len(labels)
    rows = np.where(exists, rows, 0)
    found: Any = take(inputs, rows), labels[rows], exists  # still on the host
    return EvaluationSet(*found)
