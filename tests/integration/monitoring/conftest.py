"""Owns Prometheus for tests: Debian's package, installed where it may be, and one server on a loopback port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.daemon.asking import free_address
from tests.unit.daemon.conftest import make_run, saved

__all__ = ["make_run", "saved"]  # fixtures


def _install() -> str:
    """Has promtool and prometheus on this host; returns why not, or ""."""
    if shutil.which("prometheus") and shutil.which("promtool"):
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "no prometheus here, and it cannot be installed: needs root on Debian"
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "prometheus"]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"apt-get {command[0]}: {done.stderr.strip()[-200:]}"
    return ""


@pytest.fixture(scope="session")
def promtool() -> Callable[..., str]:
    """`promtool("check", "rules", FILE)`: what it prints; raises AssertionError with that unless it exits with 0."""
    if reason := _install():
        pytest.skip(reason)

    def run(*arguments: str | Path, stdin: str = "") -> str:
        done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


class Prometheus:
    """A running server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> dict[str, float]:
        """By the values of its labels, joined, what an expression gives now."""
        result = self.get("query", query=expression)["result"]
        own = ("__name__", "instance", "job")
        return {" ".join(v for k, v in r["metric"].items() if k not in own): float(r["value"][1]) for r in result}

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        """Returns once it holds. Raises AssertionError with the state of its target."""
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, (self.firing(), self.get("targets")["activeTargets"])
            time.sleep(0.3)


@contextmanager
def prometheus(folder: Path, target: str, rules: str) -> Iterator[Prometheus]:
    """A server in `folder` that asks `target` and evaluates `rules` every second."""
    address = free_address()
    (folder / "rules.yml").write_text(rules)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [{"job_name": "dcp2hf", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # YAML takes JSON
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        asked = Prometheus(address)
        ends = time.monotonic() + 30
        while True:
            try:
                asked.get("targets")
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > ends or server.poll() is not None:
                    raise AssertionError((folder / "log").read_text()) from None
                time.sleep(0.2)
        yield asked
    finally:
        server.terminate()
        server.wait(20)
