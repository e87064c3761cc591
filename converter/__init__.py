"""Turns one complete TorchTitan step directory into one HuggingFace directory, exactly."""
