"""Draws and saves figures in one style, whatever the user's matplotlib settings.

Other modules import matplotlib's parts from here, which works even if a matplotlibrc or MPLBACKEND
keeps matplotlib from starting.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
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
    """Imports matplotlib; if the user's settings break that, without them and with a warning."""
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
    """Lets matplotlib find only the settings that it ships with, inside the block."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]  # a half-imported module
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
from matplotlib import colormaps  # noqa: E402, F401
from matplotlib.axes import Axes  # noqa: E402, F401
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.colors import Normalize, PowerNorm, to_hex  # noqa: E402, F401
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import AxesImage  # noqa: E402, F401
from matplotlib.lines import Line2D  # noqa: E402, F401
from matplotlib.patches import Patch  # noqa: E402, F401
from matplotlib.text import Text  # noqa: E402, F401
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: E402, F401

# SVG files hold text as text, and equal figures make equal files.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "mhd_jax"}
_DPI = 120


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Sets matplotlib's defaults and this package's style, for making and saving figures.

    The user's style returns afterwards. The backend stays, as no windows are opened.
    """
    style: Any = dict(matplotlib.rcParamsDefault, **_SVG)
    del style["backend"]
    with matplotlib.rc_context(style):
        yield


def shown_in_notebooks(figure: Figure) -> Figure:
    """Lets a notebook show the figure, as pyplot's are: figures here know no pyplot."""

    def as_png() -> bytes:
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()

    figure._repr_png_ = as_png  # type: ignore[attr-defined]
    return figure


def save_figure(make: Callable[[], Figure], path: pathlib.Path) -> Figure | None:
    """Makes a figure and saves it as `path` with .png and with .svg, for screens and for papers.

    SVG files store text as text, in the reader's font; equal figures make equal files. A figure
    that fails causes a warning, and leaves no file.

    Returns:
      The figure; None if it failed.
    """
    files = path.with_suffix(".png"), path.with_suffix(".svg")
    with decoration(f"the figure {path}", "All else is there."), own_style():
        try:
            figure = make()
            # savefig would draw the figure twice for each file, and drawing is what takes time.
            layout = figure.get_layout_engine()
            if layout is not None:
                layout.execute(figure)
                figure.set_layout_engine("none")
            figure.set_dpi(_DPI)
            FigureCanvasAgg(figure).print_png(files[0])
            FigureCanvasSVG(figure).print_svg(files[1], metadata={"Date": None})
            return figure
        except BaseException:
            for file in files:  # files of an earlier figure, or a half-written one
                file.unlink(missing_ok=True)
            raise
    return None


def plain(text: str) -> str:
    """Escapes dollar signs, of which two would make a formula in matplotlib."""
    return text.replace("$", r"\$")
