"""What shells and `man` know of the two commands, made from their parsers: `make manual` writes `share/`."""
