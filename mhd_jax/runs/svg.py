"""Elements of SVG drawings that stand in a page."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Returns an element with escaped texts and attributes.

    Args:
      tag: the element's name.
      *children: elements, or texts.
      **attributes: by name, in which "_" stands for "-" and a last "_" for nothing; numbers are
        written with two digits, and None leaves an attribute out.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _short(value))
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, given, Markup("").join(map(escape, children)))


def drawing(width: float, height: float, title: str, *children: Any, **attributes: Any) -> Markup:
    """Returns a drawing that fills its place's width, with a title for who cannot see it."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=title,
        **attributes,
    )


def standalone(drawn: Markup) -> str:
    """Returns a drawing as the content of a file: on white, with the letters that a page sets."""
    own = 'xmlns="http://www.w3.org/2000/svg" style="background: #fff; font: 12px sans-serif"'
    return str(drawn).replace("<svg ", f"<svg {own} ", 1)


def _short(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
