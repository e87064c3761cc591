"""`python -m converter`: the `dcp2hf` command."""

from converter.cli import main

main()
