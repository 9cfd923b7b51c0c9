"""Charts of pages: the libraries that draw them, and what specifications hold."""

import hashlib
import json
import math
import re

import pytest

from mhd_jax.runs import curves, page, palette, vega
from tests.builders import ROOT

VENDORED = ROOT / "mhd_jax/runs/vendor"


def test_libraries_are_those_that_are_pinned():
    pinned = json.loads((ROOT / ".ci/vendor/package.json").read_text())["dependencies"]
    found = json.loads((VENDORED / "versions.json").read_text())
    assert {name: each["version"] for name, each in found.items()} == pinned
    for name, each in found.items():
        content = (VENDORED / f"{name}.min.js").read_bytes()
        assert hashlib.sha256(content).hexdigest() == each["sha256"]
        assert each["license"] == "BSD-3-Clause"


def test_a_page_holds_the_libraries_with_their_licences_and_nothing_ends_its_script():
    text = str(vega.library())
    notices = text[: text.index("*/")]
    assert all(
        name in notices for name in ("vega-embed:", "vega-lite:", "d3-array", "d3-delaunay:")
    )
    assert "University of Washington Interactive Data Lab" in notices
    assert "</script" not in text.lower() and "sourceMappingURL" not in text
    assert len(text.encode()) < 900_000


def test_markers_and_dashes_of_the_palette_have_shapes():
    names = [*palette.ALGORITHMS, *(f"other {i}" for i in range(40))]
    styles = palette.row_styles(names)
    spec = vega.chart("β_sh", styles, (0, 1), (1, 9))
    points = next(each for each in spec["layer"] if each.get("name") == "points")["encoding"]
    assert points["shape"]["scale"]["domain"] == names
    looks = zip(vega.legend(styles)["glyphs"], styles.values(), strict=True)
    assert len({glyph for glyph, _ in looks}) == len({s["marker"] for s in styles.values()})
    assert spec["encoding"]["color"]["scale"]["range"] == [s["color"] for s in styles.values()]


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ((0.2, 0.9), [0, 1]),
        ((0.9, None, 0.99), [0.85, 1]),
        ((-0.3, 0.5), [-0.5, 1]),
        ((-7, 0.5), [-1, 1]),
        ((), [0, 1]),
    ],
)
def test_axes_of_accuracies_begin_where_they_must(values, axis):
    assert vega.accuracy_domain(values) == pytest.approx(axis)


def test_axes_of_losses_end_at_two_digits():
    assert vega.loss_domain([2.34, None, 0.1]) == pytest.approx([0, 2.4])
    assert all(math.isfinite(end) for end in vega.loss_domain([]))


def test_no_name_ends_a_pages_script(tmp_path):
    name = "</script><script>alert(1)</script>"
    each = {"main": [0.1, 0.2]}
    record = {"step": 1, "beta_sh": each, "per_client": {"beta_sh": each, "beta_priv": each}}
    drawn = curves.of([{**record, "train": {}}], (), [name, "mlp"])
    content = dict.fromkeys(("mark", "what", "taken", "whole", "written"), "2026")
    lists = dict.fromkeys(("sentences", "tables", "settings", "environments"), ())
    page.write(
        tmp_path,
        "unfinished.html",
        title=name,
        reloads_after=None,
        curves=drawn,
        **content,
        **lists,
    )
    text = (tmp_path / "report.html").read_text()
    assert text.count("</script>") == 4 and "<script>alert" not in text
    held = json.loads(re.search(r'id="curves-data">(.*?)</script>', text)[1])
    assert held["groups"][1]["name"] == f"clients with {name}"
