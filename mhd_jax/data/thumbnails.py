"""A few images of a data set as one inline picture, for notebooks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

_COUNT = 10
_SIDE = 48  # pixels of a thumbnail


def row(dataset: Any) -> str:
    """Returns an image tag with an image of each of the first ten classes; "" for other samples."""
    inputs = dataset.inputs
    shape: tuple[int, ...] = getattr(inputs, "shape", ())
    if len(shape) != 4 or shape[-1] not in (1, 3):
        return ""
    from PIL import Image  # slow to import, and only notebooks need it

    classes = [c for c in range(dataset.num_classes) if (dataset.labels == c).any()][:_COUNT]
    rows = np.array([int(np.argmax(dataset.labels == c)) for c in classes])
    tiles = []
    for image in np.asarray(inputs[rows]):
        pixels = image if image.dtype == np.uint8 else _as_pixels(image)
        tile = Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels).convert("RGB")
        tiles.append(np.asarray(tile.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(tiles, axis=1)).save(buffer, format="PNG")
    names = ", ".join(str(dataset.class_names[c]) for c in classes)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="one image each of the classes {names}" src="data:image/png;base64,{encoded}"/>'
    )


def _as_pixels(image: np.ndarray) -> np.ndarray:
    low, span = image.min(), max(float(np.ptp(image)), 1e-9)
    return ((image - low) / span * 255).astype(np.uint8)
