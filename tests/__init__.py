"""Tests of both packages; `tests.support.checkpoints` writes the real checkpoints they work on."""
