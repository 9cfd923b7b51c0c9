"""How figures are drawn and saved: in one style, whatever matplotlib's user has set up.

Figures take matplotlib's parts from here: they are imported even where a matplotlibrc or
MPLBACKEND keeps matplotlib from starting.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from mhd_jax.core.errors import in_a_line
from mhd_jax.runs.decoration import decoration


def _start_matplotlib() -> None:
    """Imports matplotlib: where its user's settings forbid that, without them, with a warning."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise
    except Exception as error:
        warnings.warn(
            f"matplotlib cannot start with what it is told ({in_a_line(error)}), and starts with its "
            "own defaults; see MPLBACKEND and matplotlibrc.",
            stacklevel=3,
        )
        with _no_settings():
            importlib.import_module("matplotlib")


@contextlib.contextmanager
def _no_settings() -> Iterator[None]:
    """Where matplotlib finds no settings but those that it brings along."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]  # half of it
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations is not None
    own = pathlib.Path(spec.submodule_search_locations[0]) / "mpl-data"
    here = os.getcwd()
    with mock.patch.dict(os.environ, {"MATPLOTLIBRC": str(own), "MPLBACKEND": ""}):
        os.chdir(own)  # the working directory's matplotlibrc comes first
        try:
            yield
        finally:
            os.chdir(here)


_start_matplotlib()

import matplotlib  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.colors import Normalize, PowerNorm, to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import AxesImage  # noqa: E402
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: E402

__all__ = [
    "Axes",
    "AxesImage",
    "EngFormatter",
    "Figure",
    "LogLocator",
    "MaxNLocator",
    "Normalize",
    "NullFormatter",
    "PowerNorm",
    "colormaps",
    "own_style",
    "plain",
    "save_figure",
    "to_hex",
]

# Text stays text, and the same figure is the same file.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "mhd_jax"}
_DPI = 120


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's defaults, and ours, for making and for saving figures; then its user's again.

    The backend stays: it is about windows, of which there are none.
    """
    style: Any = dict(matplotlib.rcParamsDefault, **_SVG)
    del style["backend"]
    with matplotlib.rc_context(style):
        yield


def save_figure(make: Callable[[], Figure], path: pathlib.Path) -> Figure | None:
    """Makes a figure and saves it as `path` with .png and with .svg, for screens and for papers.

    Text of the SVG is text, in a font that the reader has; equal figures make equal files. A figure
    that fails is a warning, and leaves no file.

    Returns:
      The figure; None where it has failed.
    """
    files = path.with_suffix(".png"), path.with_suffix(".svg")
    with decoration(f"the figure {path}", "All else is there."), own_style():
        try:
            figure = make()
            # savefig would draw it twice for each file, and all the time goes into that.
            layout = figure.get_layout_engine()
            if layout is not None:
                layout.execute(figure)
                figure.set_layout_engine("none")
            figure.set_dpi(_DPI)
            FigureCanvasAgg(figure).print_png(files[0])
            FigureCanvasSVG(figure).print_svg(files[1], metadata={"Date": None})
            return figure
        except BaseException:
            for file in files:  # of an earlier figure, or half of this one
                file.unlink(missing_ok=True)
            raise
    return None


def plain(text: str) -> str:
    """Text as it is: of two dollar signs matplotlib would make a formula."""
    return text.replace("$", r"\$")
