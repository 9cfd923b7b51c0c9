"""`mhd plan`, as `python -m experiments.plan`."""

from experiments.binaries import stand_in

stand_in(__name__, "plan")
