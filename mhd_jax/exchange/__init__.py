"""What crosses an edge, and who is listened to."""

from mhd_jax.exchange.selection import *  # noqa: F403
