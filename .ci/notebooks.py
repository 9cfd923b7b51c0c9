"""Executes notebooks at full size, and writes what they print and draw into them, kept small.

  python .ci/notebooks.py experiments/notebooks/quickstart.ipynb ...

Figures keep 64 colours, and are drawn smaller if they are still large. Progress and warnings are left out.
"""

from __future__ import annotations

import base64
import io
import os
import pathlib
import sys
import tempfile
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
_SHOWN = ("image/png", "text/html", "text/plain")  # of these, what says most
_MOST = 60_000  # characters of an output
_COLOURS, _SIZES = 64, (1.0, 0.7, 0.5)


def main(paths: list[pathlib.Path]) -> None:
    """Executes notebooks, each in a folder of its own."""
    for path in paths:
        print(path, flush=True)
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(
                notebook,
                timeout=None,
                record_timing=False,
                coalesce_streams=True,
                resources={"metadata": {"path": folder}},
            ).execute(env=environment)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [small(output) for output in cell.outputs if is_kept(output)]
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.stat().st_size / 1000:.0f} kB", flush=True)


def is_kept(output: Any) -> bool:
    """Returns whether an output is shown: warnings, and progress, which is text alone, are not."""
    is_progress = output.output_type == "display_data" and output.data.keys() == {"text/plain"}
    return output.get("name") != "stderr" and not is_progress


def small(output: Any) -> Any:
    """Returns an output with the kind of data that says most alone, and with a small figure.

    Raises:
      ValueError: an output that is large all the same.
    """
    if "data" not in output:
        return output
    kind = next(kind for kind in _SHOWN if kind in output.data)
    content = output.data[kind]
    if kind == "image/png":
        content = _small_png(content)
    if len(content) > _MOST:
        raise ValueError(f"an output of {len(content)} characters: draw less, or show less of it.")
    return nbformat.from_dict({**output, "data": {kind: content}, "metadata": {}})


def _small_png(encoded: str) -> str:
    """Returns a PNG in base64 with few colours, as large as there is room."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    for size in _SIZES:
        written, shape = io.BytesIO(), (round(size * image.width), round(size * image.height))
        image.resize(shape).quantize(_COLOURS).save(written, "png", optimize=True)
        found = base64.b64encode(written.getvalue()).decode()
        if len(found) <= _MOST:
            break
    return found


if __name__ == "__main__":
    main([pathlib.Path(path) for path in sys.argv[1:]])
