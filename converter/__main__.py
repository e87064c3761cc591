"""`python -m converter`: the `dcp2hf` command."""

from converter.cli.main import main

main()
