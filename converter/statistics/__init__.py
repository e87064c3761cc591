"""RMS of weights and of their updates, from values taken while the bytes pass."""
