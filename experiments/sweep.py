"""`mhd sweep`, as `python -m experiments.sweep`."""

from experiments.binaries import stand_in

stand_in(__name__, "sweep")
