"""The lowest layer: errors, files, every name that we create on disk, dtypes, pacing of I/O, phase timer."""
