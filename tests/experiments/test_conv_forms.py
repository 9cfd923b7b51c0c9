"""All forms of many clients' convolutions compute one thing; the GPU's script refuses where none is."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import signal

from experiments import conv_forms
from tests.builders import ROOT


def correlated(images, kernels):
    """SciPy's convolutions of each client [K, N, H, W, C] with its kernel [K, 3, 3, C, F]."""
    found = np.zeros((*images.shape[:-1], kernels.shape[-1]))
    for k, n, c, f in np.ndindex(*images.shape[:2], *kernels.shape[-2:]):
        image, kernel = images[k, n, ..., c], kernels[k, ..., c, f]
        found[k, n, ..., f] += signal.correlate2d(image, kernel, mode="same")
    return found


@pytest.mark.parametrize("name", conv_forms.FORMS)
def test_forms_compute_one_thing(name, float64):
    rng = np.random.default_rng(0)
    images, kernels = rng.normal(size=(2, 2, 4, 5, 3)), rng.normal(size=(2, 3, 3, 3, 2))
    weights = rng.normal(size=(2, 2, 4, 5, 2))
    convolve = conv_forms.FORMS[name]
    np.testing.assert_allclose(convolve(images, kernels), correlated(images, kernels), atol=1e-12)
    # What is linear in one argument has its value at a direction as its derivative along it.
    total = lambda images, kernels: (weights * convolve(images, kernels)).sum()
    gradients = jax.grad(total, argnums=(0, 1))(images, kernels)
    directions = rng.normal(size=images.shape), rng.normal(size=kernels.shape)
    along = (directions[0], kernels), (images, directions[1])
    for gradient, direction, arguments in zip(gradients, directions, along, strict=True):
        expected = (weights * correlated(*arguments)).sum()
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-10)


@pytest.mark.slow
def test_times_are_written_shape_by_shape(call, tmp_path):
    small = ["--clients=2", "--images=2", "--repetitions=1", "--dtypes=float32,bfloat16"]
    status, out, _ = call(conv_forms, "--shapes=4x2,2x4", *small, "--times=new/times.json")
    assert status == 0 and "2² × 4" in out
    found = json.loads((tmp_path / "new" / "times.json").read_text())["shapes"]
    expected = [(4, 2, "float32"), (4, 2, "bfloat16"), (2, 4, "float32"), (2, 4, "bfloat16")]
    assert [(one["side"], one["channels"], one["dtype"]) for one in found] == expected
    assert all(one["milliseconds"].keys() == conv_forms.FORMS.keys() for one in found)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--shapes=4x2,4", "--shapes takes sides and channels like 32x16, not '4'"),
        ("--shapes=", "--shapes must name one shape at least"),
        ("--dtypes=", "--dtypes takes float32, bfloat16, not ''"),
        ("--dtypes=float32,int8", "--dtypes takes float32, bfloat16, not 'float32,int8'"),
        ("--times=.", "--times '.' is a folder; name a file"),
    ],
)
def test_what_is_not_timed(argument, sentence, refused, monkeypatch):
    monkeypatch.setattr(conv_forms, "_timed", None)  # it is refused before the first shape
    assert sentence in refused(conv_forms, argument)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_the_script_for_a_gpu_says_that_there_is_none(tmp_path):
    ended = subprocess.run(
        ["experiments/gpu_check.sh", str(tmp_path)],
        cwd=ROOT,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and "JAX finds no GPU here" in ended.stderr
    assert not (tmp_path / "parts.tsv").exists()
