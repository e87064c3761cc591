"""`python -m daemon` is `dcp2hfd`."""

import sys

from daemon.cli import main

sys.exit(main())
