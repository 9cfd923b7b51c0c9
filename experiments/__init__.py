"""The clone's binaries and studies; modules that have moved into the package keep their old names."""

from mhd_jax.core import moved

moved.install(
    {
        f"experiments.{name}": f"mhd_jax.cli.{name}"
        for name in (
            "cases",
            "comparison",
            "data_flags",
            "fellows",
            "field_flags",
            "finished",
            "flags",
            "kept",
            "launch",
            "preparation",
            "seed_flags",
            "settings",
            "study",
            "watchdog",
            "watching",
        )
    },
    PendingDeprecationWarning,  # shown only to who asks for it: scripts of a clone are not a library
)
