"""Converts one complete TorchTitan step directory to one HuggingFace directory, exactly."""
