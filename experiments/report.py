"""`mhd report`, as `python -m experiments.report`."""

from experiments.binaries import stand_in

stand_in(__name__, "report")
