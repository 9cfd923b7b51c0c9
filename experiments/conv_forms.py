r"""Times the forms that the convolutions of many clients may take on this machine's device.

  python -m experiments.conv_forms --clients=8 --images=32 --dtypes=float32,bfloat16 \
      --times=runs/conv_forms/h200.json

Each client convolves its own images with its own kernel, and the gradients of both are taken. The
forms compute the same. A table of them is what the choice of a form on a platform rests on. The
file is written after every shape.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import Array

import mhd_jax as mhd
from experiments import speed
from experiments.timing import in_turn
from mhd_jax.cli import launch
from mhd_jax.core.files import file_here
from mhd_jax.models.conv import conv_general_dilated
from mhd_jax.runs.records import write_json
from mhd_jax.studies import tables

_SHAPES = flags.DEFINE_list(
    "shapes",
    ["32x16", "16x32", "8x64", "64x64", "16x128", "8x256", "4x512"],
    "Sides of the images, and channels: 32x16 are 32 × 32 pixels of 16 channels.",
)
_CLIENTS = flags.DEFINE_integer("clients", 8, "Clients.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 32, "Images of each client.", lower_bound=1)
_KNOWN = ["float32", "bfloat16"]
_DTYPES = flags.DEFINE_list("dtypes", _KNOWN, f"Types of the numbers: {', '.join(_KNOWN)}.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 7, "Turns of the forms.", lower_bound=1)
_TIMES = flags.DEFINE_string("times", None, "JSON file for the times.")

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Convolution = Callable[[Array, Array], Array]  # of images [N, H, W, C] and a kernel [3, 3, C, F]


def plain(images: Array, kernel: Array) -> Array:
    """One client's convolution as XLA has it."""
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def of_the_package(images: Array, kernel: Array) -> Array:
    """One client's convolution in the form that this package takes on the platform."""
    return conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def patches(images: Array, kernel: Array) -> Array:
    """One client's convolution as a product of its images' patches and the kernel as a matrix."""
    found = jax.lax.conv_general_dilated_patches(
        images, kernel.shape[:2], (1, 1), "SAME", dimension_numbers=_LAYOUT
    )
    # Patches list channels first, then the places in the kernel.
    matrix = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
    return found @ matrix


def shifts(images: Array, kernel: Array) -> Array:
    """One client's convolution as a sum of products, one for each place in the kernel."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = jnp.zeros((*images.shape[:3], kernel.shape[-1]), images.dtype)
    for i, j in itertools.product(range(3), repeat=2):
        found += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return found


def _one_by_one(convolve: Convolution) -> Convolution:
    def every(images: Array, kernels: Array) -> Array:
        return jnp.stack([convolve(*own) for own in zip(images, kernels, strict=True)])

    return every


def _in_a_loop(convolve: Convolution) -> Convolution:
    return lambda images, kernels: jax.lax.map(lambda own: convolve(*own), (images, kernels))


FORMS: dict[str, Convolution] = {
    "package": jax.vmap(of_the_package),
    "grouped": jax.vmap(plain),
    "unrolled": _one_by_one(plain),
    "loop": _in_a_loop(plain),
    "patches": jax.vmap(patches),
    "shifts": jax.vmap(shifts),
}


def main() -> None:
    """Times all forms of the shapes and types that the flags name."""
    shapes, dtypes = [_read(shape) for shape in _SHAPES.value], _DTYPES.value
    if not shapes:
        raise mhd.ConfigError("--shapes must name one shape at least, like 32x16.")
    if not dtypes or not set(dtypes) <= {*_KNOWN}:
        raise mhd.ConfigError(f"--dtypes takes {', '.join(_KNOWN)}, not {','.join(dtypes)!r}.")
    file = file_here(_TIMES.value, "--times") if _TIMES.value else None
    found: list[dict[str, Any]] = []
    for (side, channels), dtype in itertools.product(shapes, dtypes):
        found.append(_timed(side, channels, dtype))
        if file is not None:
            write_json(file, {"machine": speed.machine(), "shapes": found})
    lines = [
        [f"{one['side']}² × {one['channels']}", one["dtype"], *map("{:.3f}".format, times.values())]
        for one in found
        for times in [one["milliseconds"]]
    ]
    title = f"milliseconds, forward and backward, on {speed.machine()}"
    launch.console().print(tables.rich(("images", "type", *FORMS), lines, title))


def _read(shape: str) -> tuple[int, int]:
    side, _, channels = shape.partition("x")
    if not (side.isdecimal() and channels.isdecimal() and int(side) and int(channels)):
        raise mhd.ConfigError(f"--shapes takes sides and channels like 32x16, not {shape!r}.")
    return int(side), int(channels)


def _timed(side: int, channels: int, dtype: str) -> dict[str, Any]:
    """Returns the milliseconds of each form's forward and backward pass, and its rate."""
    num_clients, batch_size = _CLIENTS.value, _IMAGES.value
    keys = jax.random.split(jax.random.key(0))
    shapes = (
        (num_clients, batch_size, side, side, channels),
        (num_clients, 3, 3, channels, channels),
    )
    arrays = [jax.random.normal(*given).astype(dtype) for given in zip(keys, shapes, strict=True)]

    def passes(convolve: Convolution) -> Callable[[], Any]:
        def both(images: Array, kernels: Array) -> Any:
            results, pull_back = jax.vjp(convolve, images, kernels)
            return results, pull_back(results)

        return functools.partial(jax.jit(both), *arrays)

    calls = [passes(convolve) for convolve in FORMS.values()]
    times = in_turn(*calls, repetitions=_REPETITIONS.value).medians()
    flops = 3 * 2 * 9 * num_clients * batch_size * side**2 * channels**2
    return {
        "side": side,
        "channels": channels,
        "dtype": dtype,
        "num_clients": num_clients,
        "batch_size": batch_size,
        "milliseconds": {name: 1e3 * seconds for name, seconds in zip(FORMS, times, strict=True)},
        "gflop": flops / 1e9,
    }


if __name__ == "__main__":
    launch.run(main)
