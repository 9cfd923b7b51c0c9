"""`python -m mhd_jax`, which is `mhd`."""

from mhd_jax.cli.main import main

main()
