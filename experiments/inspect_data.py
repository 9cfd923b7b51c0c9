"""`mhd data`, as `python -m experiments.inspect_data`."""

from experiments.binaries import stand_in

stand_in(__name__, "data")
