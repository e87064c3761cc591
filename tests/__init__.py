"""Tests of both packages; `tests.build` writes the real checkpoints they work on."""
