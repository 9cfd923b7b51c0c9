"""The notebooks run as they stand, at toy size; those for any machine hold what they print and draw."""

import json
import os

import pytest

from tests.builders import ROOT

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
FOR_ACCELERATORS = ("colab_accelerator", "tpu_slice")  # committed without outputs
MOST_BYTES = 150_000


def test_all_are_here():
    assert [path.stem for path in NOTEBOOKS] == [
        "bring_your_own",
        "colab_accelerator",
        "open_runs",
        "quickstart",
        "tpu_slice",
        "your_own_algorithm",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_small_and_of_one_run_from_top_to_bottom(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    counts = [cell["execution_count"] for cell in code]
    if path.stem in FOR_ACCELERATORS:
        assert not outputs and counts == [None] * len(code)
        return
    assert counts == [*range(1, len(code) + 1)]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs)
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="make extra installs it")
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:  # what it holds is of another run
        cell.outputs, cell.execution_count = [], None

    monkeypatch.setenv("MHD_JAX_TOY", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": tmp_path}}).execute()
    kinds = {kind for cell in code for out in cell.outputs for kind in out.get("data", {})}
    assert "image/png" in kinds  # it shows something
    warned = [out.text for cell in code for out in cell.outputs if out.get("name") == "stderr"]
    assert not warned
