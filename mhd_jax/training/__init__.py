"""Losses, gradients and parameter updates of the clients."""
