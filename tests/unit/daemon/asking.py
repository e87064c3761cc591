"""Owns how tests ask a listener: over a real socket, with nothing that would mend what it says."""

import http.client
import socket
import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families


def free_address() -> str:
    """A loopback address that nobody listens on just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def get(address: str, path: str) -> tuple[int, str]:
    """Status and body. Raises OSError where nobody listens."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


ORDER = ("root", "run", "state", "error", "outcome", "phase", "version", "python", "le")
"""Of the values of labels, as `samples` has them."""


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name of the sample and values of its labels, in `ORDER`."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = tuple(sample.labels[label] for label in ORDER if label in sample.labels)
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def wait_for(
    address: str, condition: Callable[[dict[str, dict[tuple[str, ...], float]]], bool], seconds: float = 20.0
) -> dict[str, dict[tuple[str, ...], float]]:
    """The metrics at `address` once they are as wanted. Raises AssertionError with what they were."""
    ends = time.monotonic() + seconds
    while True:
        status, text = get(address, "/metrics")
        assert status == 200
        if condition(found := samples(text)):
            return found
        assert time.monotonic() < ends, text
        time.sleep(0.2)
