"""Graphs over clients: who may learn from whom, and when."""

from mhd_jax.topology.graphs import *  # noqa: F403
