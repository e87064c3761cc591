"""Tests of `converter`, room by room, and of whole conversions of real tiny checkpoints."""
