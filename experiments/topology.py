"""`mhd topology`, as `python -m experiments.topology`."""

from experiments.binaries import stand_in

stand_in(__name__, "topology")
