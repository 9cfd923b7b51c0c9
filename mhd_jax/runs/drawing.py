"""Draws and saves figures in one style, whatever the user's matplotlib settings.

Other modules import matplotlib's parts from here, which works even if a matplotlibrc or MPLBACKEND
keeps matplotlib from starting.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.files import partial_of, refused_where_unwritable, written_whole
from mhd_jax.core.warned import warn
from mhd_jax.runs.decoration import decoration


def _start_matplotlib() -> None:
    """Imports matplotlib; if the user's settings break that, without them and with a warning."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise
    except Exception as error:
        warn(
            f"matplotlib cannot start with what it is told ({in_a_line(error)}), and starts with its "
            "own defaults; see MPLBACKEND and matplotlibrc."
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
from matplotlib.backends.backend_pdf import FigureCanvasPdf  # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.colors import Normalize, PowerNorm, to_hex  # noqa: E402, F401
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import AxesImage  # noqa: E402, F401
from matplotlib.lines import Line2D  # noqa: E402, F401
from matplotlib.patches import Patch  # noqa: E402, F401
from matplotlib.text import Text  # noqa: E402, F401
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: E402, F401

# SVG files hold text as text, PDF files fonts that can be edited, and equal figures make equal files.
_OWN = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mhd_jax",
    "pdf.fonttype": 42,
    "legend.fontsize": "small",
}
_DPI = 120
_TWICE = 200  # dots per inch: two for each pixel of a page
_POINTS = 8  # of text in a paper
_SIZES = ("font.size", "axes.labelsize", "axes.titlesize", "legend.fontsize")
_PAPER = {
    **dict.fromkeys([*_SIZES, "xtick.labelsize", "ytick.labelsize"], _POINTS),
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
}
_FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {  # without the time, so that files are equal
    ".pdf": (FigureCanvasPdf, {"CreationDate": None}),
    ".svg": (FigureCanvasSVG, {"Date": None}),
    ".png": (FigureCanvasAgg, {}),
}
WIDTHS = {"column": 3.3, "page": 6.75}  # inches, of a two-column paper
_paper_width: contextvars.ContextVar[float | None] = contextvars.ContextVar("width", default=None)


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Sets matplotlib's defaults and this package's style, for making and saving figures.

    The user's style returns afterwards. The backend stays, as no windows are opened.
    """
    style: Any = dict(matplotlib.rcParamsDefault, **_OWN)
    if paper_width() is not None:
        style.update(_PAPER)
    del style["backend"]
    with matplotlib.rc_context(style):
        yield


@contextlib.contextmanager
def style(name: str = "screen", width: str = "page") -> Iterator[None]:
    """Figures that are made and saved in the block have this style.

    Args:
      name: "paper": text of 8 points, symbols as formulas, no titles, and the width of a column or
        a page; "screen": as in reports.
      width: of figures for a paper, "column" (3.3 inches) or "page" (6.75 inches).

    Raises:
      ConfigError: another name or width.
    """
    if name not in ("paper", "screen"):
        raise ConfigError(f"a style must be one of paper, screen, not {name!r}.")
    if width not in WIDTHS:
        raise ConfigError(f"width must be one of {', '.join(WIDTHS)}, not {width!r}.")
    token = _paper_width.set(WIDTHS[width] if name == "paper" else None)
    try:
        with own_style():
            yield
    finally:
        _paper_width.reset(token)


def paper_width() -> float | None:
    """Returns the width in inches of figures for a paper; None if they are for screens."""
    return _paper_width.get()


def small_text() -> Any:
    """Returns the size of small text in the style of now."""
    return matplotlib.rcParams["legend.fontsize"]


def save(figure: Figure, path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Saves a figure as PDF and SVG for papers, and as PNG with two dots for each pixel.

    Args:
      figure: a figure of ``mhd.figures``, `Result.plot` or `Comparison.plot`.
      path: the files' path; its ending is replaced by .pdf, .svg and .png.

    Returns:
      The files.

    Raises:
      ConfigError: the files cannot be written.
    """
    stem = pathlib.Path(path).expanduser()
    stem = stem.with_suffix("") if stem.suffix in _FORMATS else stem
    files = [stem.with_name(stem.name + ending) for ending in _FORMATS]
    with own_style(), refused_where_unwritable(path):
        for file, (canvas, about) in zip(files, _FORMATS.values(), strict=True):
            canvas(figure)
            figure.savefig(file, dpi=_TWICE, metadata=about)
    return files


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
            with written_whole(files[0]) as png, written_whole(files[1]) as svg:
                FigureCanvasAgg(figure).print_png(png)
                FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
            return figure
        except BaseException:
            for file in files:  # files of an earlier figure, or a half-written one
                file.unlink(missing_ok=True)
                partial_of(file).unlink(missing_ok=True)
            raise
    return None


def plain(text: str) -> str:
    """Escapes dollar signs, of which two would make a formula in matplotlib."""
    return text.replace("$", r"\$")
