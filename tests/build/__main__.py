"""`python -m tests.build OUT`: write all test checkpoints under OUT, once; see `tests.build.cache`."""

import sys
from pathlib import Path

from tests.build.cache import ensure

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.build OUT")
    ensure(Path(sys.argv[1]).absolute())
