"""`mhd train`, as `python -m experiments.train`."""

from experiments.binaries import stand_in

stand_in(__name__, "train")
