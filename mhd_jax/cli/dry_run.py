"""What `mhd train --dry_run` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.filesize import decimal

from mhd_jax.runs.settings import flat

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def lines(found: Mapping[str, Any]) -> list[str]:
    """Returns sentences about what a run would take, see `mhd_jax.engine.dry_run.dry_run`."""
    samples = ", ".join(f"{count:,} {role}" for role, count in found["samples"].items() if count)
    shapes = [
        f"{name.replace('_', ' ')} {shape}" for name, shape in found["shapes"].items() if shape
    ]
    told = [
        "dry run: nothing is trained, and nothing is written",
        f"{found['algorithm']} on {found['dataset']}, {found['num_clients']} clients; "
        f"samples: {samples}",
        f"{found['steps']:,} steps, {found['evaluations']:,} evaluations",
        f"shapes: {', '.join(shapes)}",
        *(
            f"model {each['model']} of {len(each['clients'])} client(s): "
            f"{each['parameters']:,} parameters, state of {decimal(each['state_bytes'])} a client"
            for each in found["models"]
        ),
        _memory(found["memory"]),
        _operations(found["flops"]),
        *_sent(found["communication"]),
        "settings:",
    ]
    return told + [f"  {name}: {value}" for name, value in flat(found["settings"]).items()]


def _memory(memory: Mapping[str, Any]) -> str:
    parts = "; ".join(f"{decimal(size)} for {what}" for what, size in memory["by_purpose"].items())
    fits = "it fits" if memory["fits"] else "it DOES NOT FIT"
    return (
        f"memory of each of {memory['devices']} device(s), estimated: "
        f"{decimal(memory['total_bytes'])} of {decimal(memory['device_bytes'])}, {fits} ({parts})"
    )


def _operations(flops: Mapping[str, Any]) -> str:
    if flops["step"] is None:
        return "operations: unknown here"
    return f"operations: {_many(flops['step'])} a step, {_many(flops['run'])} in all"


def _many(flops: float) -> str:
    for size, letter in _UNITS:
        if flops >= size:
            return f"{flops / size:,.1f} {letter}FLOP"
    return f"{flops:,.0f} FLOP"


def _sent(sent: Mapping[str, Any]) -> list[str]:
    each = f"a message of every kind: {decimal(sent['bytes_per_step_per_edge'])}"
    if sent["total_bytes"] is None:
        return [each, "sent: not known before training, which decides what is sent"]
    kinds = ", ".join(f"{decimal(size)} {what}" for what, size in sent["by_type"].items())
    counts = ", ".join(f"{count:,} {kind}" for kind, count in sent["messages"].items())
    about = f" ({kinds}; messages: {counts})" if sent["total_bytes"] else ""
    total, step = decimal(sent["total_bytes"]), decimal(round(sent["bytes_per_step"]))
    return [each, f"sent: {step} a step, {total} in all{about}"]
