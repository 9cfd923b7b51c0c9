"""Lists the files of flags that come with this package.

  mhd presets

A command reads one by --flagfile=preset:NAME; flags that follow it count in its place. In a clone
the files are in experiments/presets, beside those of its studies.
"""

from __future__ import annotations

from mhd_jax.cli import launch, presets


def main() -> None:
    """Prints each preset's command and what it is."""
    for preset in presets.known().values():
        launch.say(f"mhd {preset.command} --flagfile=preset:{preset.name}\n    {preset.about}")


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, computes=False)
