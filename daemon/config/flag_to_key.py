"""Owns the translation of a converter's hint for operators of the daemon: flags become keys of the configuration."""

import re
import shlex

KEYS = {
    "accept-copy": "dcp2hfd retry --accept-copy",
    "allow-routing-drift": "allow_routing_drift",
    "architecture": "architecture",
    "assets-root": "assets_roots",
    "dtype": "dtype",
    "force": "overwrite_foreign",
    "hf-assets": "hf_assets",
    "ignore-tensors": "ignore_tensors",
    "logs-root": "logs_roots",
    "metadata-deadline": "metadata_deadline",
    "metadata-memory-limit": "metadata_memory_limit",
    "output": "output",
    "path-map": "path_map",
    "restrict-assets": "assets_roots",
    "run-config": "run_config_names",
    "threads": "threads",
    "tokenizer": "tokenizer",
    "untie": "untie",
}
"""A flag of `dcp2hf convert` that hints name -> what an operator of dcp2hfd says instead."""


_named: list[str] = []
"""The option with which commands find this process's configuration."""


def name_config(file: str | None) -> None:
    """Has hints name this configuration file; None: commands find it by themselves. Without it `retry` would miss the ledger."""
    _named[:] = ["--config", file] if file else []


def retry(path: str, *options: str) -> str:
    """The command that tries `path`, a step or a run, again, as a shell takes it."""
    return shlex.join(["dcp2hfd", "retry", path, *options, *_named])


def with_retry(hint: str, path: str) -> str:
    """The hint of a quarantined step: `path`, of the step or of its run, is what is to be tried again when it was followed."""
    return f"{hint}; then {retry(path)}" if hint else retry(path)


def in_keys(hint: str) -> str:
    """A converter's hint as people read it who write a configuration, not a command line: a key is quoted, or `tokenizer` is a word."""
    hint = hint.replace("--architecture run", '`architecture = "run"`')
    return re.sub(r"--([a-z][a-z-]*)", lambda flag: f"`{KEYS[flag[1]]}`" if flag[1] in KEYS else flag[0], hint)
