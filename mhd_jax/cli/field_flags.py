"""Flags of the fields of records, which have the fields' names, types and defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from mhd_jax.cli import own_code

flags.disclaim_key_flags()  # a flag belongs to the module that has it defined here

_DEFINED_BY: dict[str, Any] = {
    "bool": flags.DEFINE_bool,
    "int": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
}


class _ChoiceOrOwnCode(flags.EnumParser):
    """Takes one of several names, or users' own code."""

    def parse(self, argument: str) -> str:
        return argument if own_code.is_own(argument) else super().parse(argument)


def define_choice(name: str, default: str | None, choices: Sequence[str], text: str) -> None:
    """Defines a flag that is one of several names, or users' own code like my.py:name."""
    told = f"{text.rstrip('.')}; or your own, like my.py:name."
    as_text: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    flags.DEFINE(_ChoiceOrOwnCode(list(choices)), name, default, told, serializer=as_text)


def define(
    name: str, annotation: str, default: Any, text: str, choices: Sequence[str] | None = None
) -> None:
    """Defines a flag of the type of an annotation like "int | None"; by default it is a text."""
    kind = annotation.removesuffix(" | None")
    if choices is not None:
        flags.DEFINE_enum(name, default, list(choices), text)
    elif kind in _DEFINED_BY:
        _DEFINED_BY[kind](name, default, text)
    else:
        flags.DEFINE_string(name, None if default is None else str(default), text)


def define_fields(
    record: type, texts: Mapping[str, str], choices: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Defines a flag for each field of a dataclass that has a help text, or choices with it."""
    fields = {field.name: field for field in dataclasses.fields(record)}
    for name, text in texts.items():
        field = fields[name]
        define(name, str(field.type), field.default, text, (choices or {}).get(name))


def defaults(record: type) -> dict[str, Any]:
    """Returns the defaults of a dataclass's fields by name."""
    return {field.name: field.default for field in dataclasses.fields(record)}
