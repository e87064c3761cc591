"""How far conversions are comes from the daemon, at once or not at all."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from daemon.status import live_progress

PATH = "/runs/a/checkpoint/step-10"


def found(state: str = "running") -> dict[str, Any]:
    """A report with one step."""
    return {"runs": [{"steps": [{"path": PATH, "state": state, "progress": None}]}]}


def progress_of(report: dict[str, Any]) -> Any:
    return report["runs"][0]["steps"][0]["progress"]


@contextmanager
def answering(body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that gives `body` to whoever asks; its address, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_running_step_says_how_far_it_is() -> None:
    running = [
        {"path": "/elsewhere", "phase": "export", "done": 1, "total": 2},
        {"path": PATH, "phase": "export", "done": 430_000_000, "total": 1_000_000_000, "since": "…"},
    ]
    report = found()
    with answering(json.dumps({"now": "…", "running": running}).encode()) as (address, asked):
        live_progress.add_progress(report, address)

    assert asked == ["/status.json"]
    assert progress_of(report) == {"phase": "export", "done": 430_000_000, "total": 1_000_000_000}
    assert live_progress.text(progress_of(report)) == "export 43 % of 1 GB"


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (None, ""),
        ({"phase": "forward", "done": 14, "total": 56}, "forward 25 % of 56 layers"),
        ({"phase": "before_publish", "done": 0, "total": 0}, "before_publish"),
        ({"phase": "export", "done": 9, "total": 8}, "export 100 % of 8 B"),
    ],
)
def test_it_is_said_in_few_words(progress: dict[str, Any] | None, text: str) -> None:
    assert live_progress.text(progress) == text


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"running": 1}', b'{"running": [{"path": 1}]}', json.dumps({"running": [{"path": PATH}]}).encode(),
     json.dumps({"running": [{"path": PATH, "phase": "export", "total": -5}]}).encode(),
     json.dumps({"running": [{"path": PATH, "phase": "export", "done": 10**30}]}).encode()],
    ids=["nothing", "no JSON", "a list", "no list", "no path", "no phase yet", "less than nothing", "more than there is"],
)  # fmt: skip
def test_an_answer_that_does_not_say_leaves_it_unknown(body: bytes) -> None:
    report = found()
    with answering(body) as (address, _):
        live_progress.add_progress(report, address)

    assert progress_of(report) is None


def test_where_nobody_answers_it_is_unknown_and_not_waited_for() -> None:
    report, began = found(), time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        live_progress.add_progress(report, f"127.0.0.1:{silent.getsockname()[1]}")
        port = silent.getsockname()[1]
    live_progress.add_progress(report, f"127.0.0.1:{port}")
    live_progress.add_progress(report, "")

    assert progress_of(report) is None
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("begins", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(begins: bytes) -> None:
    def drip() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(begins)
                time.sleep(0.1)

    report, began = found(), time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip)
        thread.start()
        live_progress.add_progress(report, f"127.0.0.1:{server.getsockname()[1]}")
        took = time.monotonic() - began
        thread.join()

    assert progress_of(report) is None
    assert took < 5


def test_nobody_is_asked_while_nothing_runs_and_what_ended_is_no_longer_under_way() -> None:
    report = found("done")
    with answering(b"{}") as (address, asked):
        live_progress.add_progress(report, address)

    assert asked == []
