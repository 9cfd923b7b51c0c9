"""The notebooks run as they stand, at toy size, and are committed without what they print."""

import os

import pytest

from tests.builders import ROOT

nbformat = pytest.importorskip("nbformat", reason="make extra installs it")

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.notebooks


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
def test_notebook(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)

    monkeypatch.setenv("MHD_JAX_TOY", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": tmp_path}}).execute()
    kinds = {kind for cell in code for out in cell.outputs for kind in out.get("data", {})}
    assert "image/png" in kinds  # it shows something
    warned = [out.text for cell in code for out in cell.outputs if out.get("name") == "stderr"]
    assert not warned
