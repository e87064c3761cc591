"""Runs the `dcp2hfd` command as `python -m daemon`."""

import sys

from daemon.cli import main

sys.exit(main())
