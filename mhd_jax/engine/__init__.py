"""The compiled steps, and the host's loop around them."""
