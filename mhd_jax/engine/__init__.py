"""The engine: the compiled training steps, and the host's loop around them."""
