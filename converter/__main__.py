"""Runs the `dcp2hf` command as `python -m converter`."""

from converter.cli.main import main

main()
