"""Tables of a Markdown page that are made of records, so that nobody types their numbers."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

import mhd_jax as mhd
from mhd_jax.cli.study import Table
from mhd_jax.core.errors import in_a_line
from mhd_jax.runs.records import write_text
from mhd_jax.studies import tables

_PLACE = re.compile(r"^<!-- made: (\S+)/(\w+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


def read(page: pathlib.Path, study: str) -> str:
    """Returns the text of a page that has a table of a study.

    Raises:
      mhd.ConfigError: the page cannot be read, or has no place for a table of this study.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise mhd.ConfigError(f"{page} cannot be read ({in_a_line(error)}).") from error
    if not any(place[1] == study for place in _PLACE.finditer(text)):
        raise mhd.ConfigError(
            f"{page} has no place for a table of {study}; put <!-- made: {study}/main --> and "
            "<!-- end --> where one is to stand, each on a line of its own."
        )
    return text


def filled(text: str, study: str, made: Mapping[str, Table]) -> str:
    """Returns a page whose tables of a study are made anew.

    Args:
      text: the page. A table stands between `<!-- made: STUDY/NAME -->` and `<!-- end -->`.
      study: the study's name; the places of others stay as they are.
      made: the study's tables by name.

    Raises:
      mhd.ConfigError: the page asks for a table that no record fills.
    """

    def table(place: re.Match[str]) -> str:
        its_study, name, _ = place.groups()
        if its_study != study:
            return place[0]
        if name not in made:
            raise mhd.ConfigError(
                f"the page asks for {study}/{name}, but records make {', '.join(made) or 'no table'}."
            )
        rows = tables.markdown(made[name].headings, made[name].lines)
        return f"<!-- made: {study}/{name} -->\n\n{rows}\n<!-- end -->"

    return _PLACE.sub(table, text)


def fill(page: pathlib.Path, study: str, made: Mapping[str, Table]) -> None:
    """Makes the tables of a study in a Markdown file anew; raises what `read` and `filled` do."""
    write_text(page, filled(read(page, study), study, made))
