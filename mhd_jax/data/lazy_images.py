"""Images that are read from their files when they are asked for, because memory cannot hold all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

from mhd_jax.core.digests import array_digest

_MOST_OF_MEMORY = 0.25
_ALONE = 4096  # images that one thread reads: batches have several threads already
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """Stands where an array uint8 [N, H, W, C] would, and reads the rows that are taken of it.

    Attributes:
      read: images uint8 [n, H, W, C] of n files, by their numbers.
      numbers: which file each row is, int [N].
      image_shape: [H, W, C].
      identity: tells the files from others.
      keys: tell each file, or record in one, from all others of this machine, int64 by number.
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
        """Images [..., H, W, C] of rows [...]."""
        numbers = self.numbers[rows]
        flat = numbers.reshape(-1).tolist()
        if len(flat) <= _ALONE:
            images = self.read(flat)
        else:
            images = np.empty((len(flat), *self.image_shape), np.uint8)

            def fill(start: int) -> None:
                images[start : start + _AT_ONCE] = self.read(flat[start : start + _AT_ONCE])

            with ThreadPoolExecutor() as pool:
                list(pool.map(fill, range(0, len(flat), _AT_ONCE)))
        return images.reshape(*numbers.shape, *self.image_shape)

    def digest(self) -> str:
        """Tells the rows from others by their files, which are not read."""
        return f"{self.identity}{array_digest(self.numbers)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """As the array's."""
        return (len(self.numbers), *self.image_shape)

    def select(self, rows: np.ndarray) -> LazyImages:
        """Some of the images, not read yet."""
        return dataclasses.replace(self, numbers=self.numbers[rows])


def fits_in_memory(num_images: int, image_shape: Sequence[int]) -> bool:
    """Whether that many images of bytes leave most of the memory free."""
    return num_images * int(np.prod(image_shape)) <= _MOST_OF_MEMORY * psutil.virtual_memory().total
