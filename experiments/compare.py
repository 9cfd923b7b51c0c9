"""`mhd compare`, as `python -m experiments.compare`."""

from experiments.binaries import stand_in

stand_in(__name__, "compare")
