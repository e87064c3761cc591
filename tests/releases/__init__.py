"""What each release wrote, kept: the ledger and a manifest, which every later program must be able to open.

`python -m tests.releases CHECKPOINTS` makes those of the version in pyproject.toml, once, when it is released.
"""
