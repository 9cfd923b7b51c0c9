"""Figures for papers: their size, text and files, and panels of one's own."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import mhd_jax as mhd
from mhd_jax.runs import comparison_curves

HEADS = ["main", "aux_1"]


def history():
    """Two evaluations of two clients."""
    values = {"main": 0.3, "aux_1": 0.6}
    each = {metric: {h: [values[h]] * 2 for h in HEADS} for metric in ("beta_sh", "beta_priv")}
    return [
        {"step": s, "bytes": s, "beta_sh": values, "beta_priv": values, "per_client": each}
        for s in (5, 10)
    ]


def rows():
    value = {"mean": 0.4, "std": 0.1}
    both = {metric: dict.fromkeys(HEADS, value) for metric in ("beta_sh", "beta_priv")}
    return [{"algorithm": name, **both} for name in ("mhd", "a row with a long name")]


FIGURES = {
    "accuracy": lambda **ax: mhd.figures.accuracy(history(), 0.1, **ax),
    "comparison": lambda **ax: mhd.figures.comparison(rows(), 0.1, **ax),
    "curves": lambda **ax: mhd.figures.comparison_curves({"mhd": [history()]}, 0.1, **ax),
    "bytes": lambda **ax: mhd.figures.communication_curves({"mhd": [history()]}, 0.1, **ax),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize(
    ("width", "inches"), [("column", 3.3), pytest.param("page", 6.75, marks=pytest.mark.slow)]
)
def test_a_paper_has_its_width_its_text_and_no_titles(make, width, inches):
    with mhd.figures.style("paper", width):
        figure = make()
        figure.draw_without_rendering()
    assert figure.get_figwidth() == inches
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert {text.get_fontsize() for text in texts} == {8}
    words = [text.get_text() for text in texts]
    assert any(r"$\beta_\mathrm{sh}$" in word for word in words) and "β_sh" not in "".join(words)
    assert figure.get_suptitle() == "" and not any(axis.get_title() for axis in figure.axes)
    lefts = {round(axis.get_position().x0, 3) for axis in figure.axes}
    assert len(lefts) == (1 if width == "column" else 2)
    drawn = figure.get_tightbbox()  # in inches
    assert drawn.x0 >= -0.02 and drawn.x1 <= inches + 0.02


COUNTS = np.arange(24).reshape(3, 8)
BY_CLASS = {"per_class_accuracy": dict.fromkeys(HEADS, COUNTS[0] / 24)}
MAPS = {
    "split": lambda: mhd.figures.data_split(COUNTS, list("abcdefgh")),
    "classes": lambda: mhd.figures.per_class(
        {"beta_sh": dict.fromkeys(HEADS), "per_client": [BY_CLASS] * 3}, list("abcdefgh")
    ),
    "edges": lambda: mhd.figures.edges({"logits": np.eye(4)}),
}


@pytest.mark.parametrize("make", MAPS.values(), ids=MAPS)
def test_maps_have_a_papers_width_too(make):
    on_screen = make()
    with mhd.figures.style("paper", "column"):
        figure = make()
        figure.draw_without_rendering()
    assert figure.get_figwidth() == 3.3 < on_screen.get_figwidth()
    shrunk = figure.get_figheight() / on_screen.get_figheight()
    assert shrunk == pytest.approx(max(0.6, 3.3 / on_screen.get_figwidth()))
    assert figure.get_suptitle() == "" and figure.get_tightbbox().x1 <= 3.33
    panel = figure.axes[0]
    assert not panel.texts and bool(on_screen.axes[0].texts) == (make is MAPS["split"])


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: mhd.figures.accuracy([]), "no evaluations to draw"),
        (lambda: mhd.figures.comparison([]), "no rows to draw"),
        (lambda: mhd.figures.comparison_curves({}), "no rows to draw"),
        (lambda: mhd.figures.communication_curves({"mhd": []}), "no runs of mhd to draw"),
        (lambda: mhd.figures.comparison_curves({"mhd": [[]]}), "no evaluations of mhd to draw"),
        (
            lambda: mhd.figures.save(mhd.figures.Figure(), "missing/x"),
            "missing/x cannot be written",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told(draw, said):
    with pytest.raises(mhd.ConfigError, match=said):
        draw()


def test_files_for_papers_and_screens(tmp_path):
    for name in ("one.png", "two"):
        with mhd.figures.style("paper", "column"):
            files = mhd.figures.save(FIGURES["accuracy"](), tmp_path / name)
        assert {file.suffix for file in files} == {".pdf", ".svg", ".png"}
    for ending in (".pdf", ".svg", ".png"):
        one, two = ((tmp_path / name).with_suffix(ending).read_bytes() for name in ("one", "two"))
        assert one == two
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
    width = int.from_bytes((tmp_path / "one.png").read_bytes()[16:20])
    assert width == 660  # 3.3 inches of 200 dots


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_panels_may_be_ones_own(make):
    own = Figure()
    panels = own.subplots(2, 3)
    assert make(ax=panels[1, :2]) is own
    assert [axis.has_data() for axis in panels.flat] == [False] * 3 + [True, True, False]
    assert not own.legends
    with pytest.raises(mhd.ConfigError, match=r"ax must hold 2 panel\(s\), not 3"):
        make(ax=panels[0])


def test_other_styles_and_widths_are_refused():
    for given, sentence in ((("slides",), "a style must be"), (("paper", "wall"), "width must be")):
        with pytest.raises(mhd.ConfigError, match=sentence), mhd.figures.style(*given):
            pass


def test_a_screen_returns_after_a_paper():
    with mhd.figures.style("paper"):
        pass
    assert np.isclose(FIGURES["accuracy"]().get_figwidth(), 9.5)


def test_a_phone_shows_the_legend_without_scrolling():
    """A phone of 390 pixels shows the first 358 of a figure's 640."""
    for make in FIGURES.values():
        with mhd.figures.style("screen"):
            figure = make()
            figure.draw_without_rendering()
        assert figure.legends[0].get_window_extent().x1 < 358 / 640 * figure.bbox.width


@pytest.mark.parametrize(
    ("mean", "low", "high"), [(-0.4, -1.4, 0.6), (0.4, 0, 1), (-0.1, -1.1, 0.9), (0.9, 0, 1)]
)
def test_deviations_reach_as_far_as_scores_can_be(mean, low, high):
    """An accuracy is in [0, 1]; a score of numbers, which alone is below 0, knows no lower limit."""
    value = {head: {"mean": mean, "std": 1.0} for head in HEADS}
    figure = mhd.figures.comparison([{"algorithm": "mhd", "beta_sh": value, "beta_priv": value}])
    for bars in figure.axes[0].collections:
        np.testing.assert_allclose(bars.get_segments()[0][:, 0], [low, high])
    assert len(figure.axes[0].collections) == 2

    runs = {seed: history() for seed in (0, 1)}
    for seed, records in runs.items():
        for record in records:
            scores = dict.fromkeys(HEADS, mean + (seed - 0.5) * 2**0.5)  # of deviation 1
            record |= {"beta_sh": scores, "beta_priv": scores}
    (shade,) = mhd.figures.comparison_curves({"mhd": list(runs.values())}).axes[0].collections
    ends = shade.get_paths()[0].get_extents()
    np.testing.assert_allclose([ends.y0, ends.y1], [low, high])
    panel = comparison_curves.of({"mhd": runs}, None)["groups"][0]["panels"][0]
    np.testing.assert_allclose(panel["ranges"], [[[low, low], [high, high]]], atol=1e-3)
