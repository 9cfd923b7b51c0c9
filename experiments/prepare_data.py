"""`mhd prepare`, as `python -m experiments.prepare_data`."""

from experiments.binaries import stand_in

stand_in(__name__, "prepare")
