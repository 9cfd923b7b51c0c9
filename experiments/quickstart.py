"""`mhd demo`, as `python -m experiments.quickstart`."""

from experiments.binaries import stand_in

stand_in(__name__, "demo")
