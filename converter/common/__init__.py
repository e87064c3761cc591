"""Leaves: errors, files, every name we create on disk, dtypes, pacing of I/O, phase timer."""
