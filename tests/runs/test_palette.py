"""Colours and markers: they are fixed, stand out from white, and differ for all readers."""

import itertools

import numpy as np
import pytest

from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.runs import figures, palette
from tests.builders import ROOT

HEADS = ["main", *(f"aux_{rank}" for rank in range(1, 7))]

# What colour-blind readers see of linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
LUMINANCE = [0.2126, 0.7152, 0.0722]


def linear(colour):
    """Linear RGB of a colour like #0072B2 (IEC 61966-2-1)."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB, with the white of D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colour", sorted({*palette.COLOURS, *palette.head_colours(7)}))
def test_colours_stand_out_from_white(colour):
    assert 1.05 / (linear(colour) @ LUMINANCE + 0.05) >= 3  # WCAG 2, criterion 1.4.11


def by_night(colour):
    """Linear RGB of a colour on a dark page: CSS's invert(.9), then hue-rotate(180deg), on sRGB."""
    c = 0.9 - 0.8 * np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    turned = 2 * (np.array([0.213, 0.715, 0.072]) @ c) - c
    c = np.clip(turned, 0, 1)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("colour", sorted({*palette.COLOURS, *palette.head_colours(7)}))
def test_colours_stand_out_at_night(colour):
    css = (ROOT / "mhd_jax/runs/templates/page.css").read_text()
    assert "filter: invert(.9) hue-rotate(180deg)" in css
    ground = by_night("#ffffff") @ LUMINANCE + 0.05
    assert (by_night(colour) @ LUMINANCE + 0.05) / ground >= 3


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("colours", [palette.COLOURS, palette.head_colours(7)])
def test_colours_differ_for_all_readers(colours, sight):
    seen = [lab(np.array(SIGHTS[sight]) @ linear(colour)) for colour in colours]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 10


def looks(styles):
    return [(s["color"], s["marker"], s["linestyle"]) for s in styles.values()]


def test_every_algorithm_has_its_own_look_whatever_stands_beside_it():
    assert set(palette.ALGORITHMS) == set(ALGORITHMS)
    every = palette.row_styles(list(ALGORITHMS))
    assert len(set(looks(every))) == len(ALGORITHMS)
    for name in ("mhd", "isolated"):
        for rows in ([name], ["naive", name], ["another", "mhd, nu_aux=2", name]):
            assert palette.row_styles(rows)[name] == every[name]


def test_other_rows_differ_from_all_and_keep_their_look():
    names = ["mhd", "naive", *(f"mhd, nu_aux={x}" for x in range(40))]
    styles = palette.row_styles(names)
    assert list(styles) == names and len(set(looks(styles))) == len(names)
    assert len({colour for colour, *_ in looks(palette.row_styles(names[:8]))}) == 8
    beside_others = palette.row_styles(["isolated", "mhd_density_ratio"])
    alone = palette.row_styles(["mhd_density_ratio"])
    assert beside_others["mhd_density_ratio"] == alone["mhd_density_ratio"]


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_a_head_has_one_look_however_many_there_are(count):
    heads = [*HEADS, "aux_7", "aux_8"]
    few, all_ = palette.head_styles(heads[:count]), palette.head_styles(heads)
    assert few == {head: all_[head] for head in heads[:count]}
    assert len({(s["color"], s["marker"]) for s in all_.values()}) == len(heads)


def test_a_plot_draws_a_head_in_its_colour():
    drawn = {}
    for heads in (HEADS[:2], HEADS[:4]):
        values = dict.fromkeys(heads, 0.4)
        each = {metric: {head: [0.4] for head in heads} for metric in ("beta_sh", "beta_priv")}
        record = {"step": 1, "beta_sh": values, "beta_priv": values, "per_client": each}
        lines = figures.accuracy([record]).axes[0].get_lines()
        drawn[len(heads)] = {line.get_label(): line.get_color() for line in lines}
    assert drawn[2].items() <= drawn[4].items()
