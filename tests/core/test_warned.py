"""Warnings name the user's line, whatever stands between it and their reason."""

import importlib
import inspect
import sys
import warnings

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.core import modes
from mhd_jax.core.warned import warn


def here(added):
    """Returns the place of the line that is `added` lines below the call."""
    frame = inspect.currentframe().f_back
    return __file__, frame.f_lineno + added


def place(record):
    (warning,) = record
    return warning.filename, warning.lineno


def test_a_warning_from_deep_in_the_package_names_the_users_line():
    counts = np.tile(np.arange(3, dtype=np.int64), (12, 1))
    labels = np.arange(12) % 3
    with pytest.warns(UserWarning, match="taken for pixels") as record:
        expected = here(1)
        mhd.data.arrays(counts, labels)
    assert place(record) == expected


def test_a_warning_through_a_decorator_names_the_users_line():
    def computed():
        return 1

    with jax.disable_jit(), pytest.warns(UserWarning, match="jax_disable_jit") as record:
        expected = here(1)
        assert modes.standard()(computed)() == 1
    assert place(record) == expected


def test_an_old_name_is_told_where_it_is_imported():
    sys.modules.pop("mhd_jax.losses", None)
    with pytest.warns(DeprecationWarning, match="mhd_jax.training.losses now") as record:
        expected = here(1)
        importlib.import_module("mhd_jax.losses")
    assert place(record) == expected


def test_the_same_warning_is_shown_once_a_line():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("seen")
    assert len(record) == 1
