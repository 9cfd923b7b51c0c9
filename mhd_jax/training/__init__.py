"""One client's losses, gradients and updates."""
