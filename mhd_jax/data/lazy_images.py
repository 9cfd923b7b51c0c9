"""Images that are read from their files on access, for data sets larger than the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

from mhd_jax.core.digests import array_digest

_MOST_OF_MEMORY = 0.25
_ALONE = 4096  # up to so many images are read by one thread: batches are read in parallel already
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """A substitute for an array uint8 [N, H, W, C], which reads rows from files on access.

    Attributes:
      read: a function that reads images uint8 [n, H, W, C] of n files, given their numbers.
      numbers: the number of each row's file, int [N].
      image_shape: [H, W, C].
      identity: a text that distinguishes these files from others.
      keys: a number for each file, or record in a file, that no other on this machine has, int64 by
        file number.
    """

    read: Callable[[Sequence[int]], np.ndarray]
    numbers: np.ndarray
    image_shape: tuple[int, int, int]
    identity: str
    keys: np.ndarray

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Reads the images [..., H, W, C] of rows [...]."""
        numbers = self.numbers[rows]
        flat = numbers.reshape(-1).tolist()
        images = self.read(flat) if len(flat) <= _ALONE else self._read_by_threads(flat)
        return images.reshape(*numbers.shape, *self.image_shape)

    def read_all(self) -> np.ndarray:
        """Reads all images, uint8 [N, H, W, C], with several threads."""
        return self._read_by_threads(self.numbers.tolist())

    def _read_by_threads(self, numbers: Sequence[int]) -> np.ndarray:
        images = np.empty((len(numbers), *self.image_shape), np.uint8)

        def fill(start: int) -> None:
            images[start : start + _AT_ONCE] = self.read(numbers[start : start + _AT_ONCE])

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(0, len(numbers), _AT_ONCE)))
        return images

    def digest(self) -> str:
        """Returns a digest of the rows by their files' identity, without reading the files."""
        return f"{self.identity}{array_digest(self.numbers)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that this stands for, (N, H, W, C)."""
        return (len(self.numbers), *self.image_shape)

    def select(self, rows: np.ndarray) -> LazyImages:
        """Returns the images of `rows` without reading them."""
        return dataclasses.replace(self, numbers=self.numbers[rows])


def fits_in_memory(num_images: int, image_shape: Sequence[int]) -> bool:
    """Returns whether so many uint8 images fit in a quarter of the memory."""
    return num_images * int(np.prod(image_shape)) <= _MOST_OF_MEMORY * psutil.virtual_memory().total
