"""`python -m tests.support.checkpoints OUT`: write all test checkpoints under OUT, once; see `tests.support.checkpoints.cache`."""

import sys
from pathlib import Path

from tests.support.checkpoints.cache import ensure

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.support.checkpoints OUT")
    ensure(Path(sys.argv[1]).absolute())
