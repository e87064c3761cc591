"""The listener answers GET, refuses the rest, and nobody who is slow, large or many keeps others from their answer."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from io import StringIO
from typing import Any

import pytest

from daemon.host import logs
from daemon.status import http_origin, http_server
from daemon.status.http_server import Listener, Response
from tests.unit.daemon.asking import free_address


def fails(query: str) -> Response:
    raise RuntimeError("no page today")


PAGES = {
    "/page": lambda query: Response(b"hello\n"),
    "/asked": lambda query: Response(query.encode()),
    "/fails": fails,
    "/large": lambda query: Response(b"x" * (64 << 20)),
}


def served(test: Callable[[str], Awaitable[None]], host: str = "127.0.0.1") -> str:
    """Runs `test` with the address of a listener on `host`; returns what was logged."""
    said = StringIO()

    async def run() -> None:
        address = f"{host}:{free_address().rpartition(':')[2]}"
        listening = Listener(PAGES, logs.logger(said))
        await listening.open(address)
        try:
            async with asyncio.timeout(30):
                await test(address)
        finally:
            await listening.close()
        with pytest.raises(OSError):
            await connect(address)

    asyncio.run(run())
    return said.getvalue()


async def connect(address: str, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), **options)


async def ask(address: str, request: bytes) -> bytes:
    reader, writer = await connect(address)
    writer.write(request)
    said = await reader.read()
    writer.close()
    return said


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /page HTTP/1.1\r\nHost: localhost:9469\r\n\r\n", b"200 OK", b"hello\n"),
        (b"GET /asked?run=%2Fr&x HTTP/1.1\r\n\r\n", b"200 OK", b"run=%2Fr&x"),
        (b"GET /page?a=b HTTP/1.0\r\n\r\n", b"200 OK", b"hello\n"),
        (b"HEAD /page HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404 Not Found", b"Not Found\n"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", b"404 Not Found", b"Not Found\n"),
        (b"POST /page HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"Method Not Allowed\n"),
        (b"\x16\x03\x01\xff\x00\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
        (b"GET /page\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
    ],
)
def test_a_request_has_one_answer_and_the_connection_ends(request_: bytes, status: bytes, body: bytes) -> None:
    async def test(address: str) -> None:
        head, _, found = (await ask(address, request_)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert b"\r\nConnection: close" in head
        assert b"\r\nContent-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect" in head
        assert b"\r\nX-Content-Type-Options: nosniff" in head
        assert b"\r\nReferrer-Policy: no-referrer" in head
        assert b"\r\nCache-Control: no-store" in head
        assert found == body

    served(test)


OWN = ["localhost", "LocalHost:80", "127.0.0.1:9469", "127.8.9.1", "[::1]:9469", "dcp2hf.localhost:1", "localhost."]
OTHERS = [
    "evil.example",
    "evil.example:9469",
    "localhost.evil.example",
    "10.0.0.1",
    "127.0.0.1.evil.example",
    "[fd00::1]",
    "",
]


@pytest.mark.parametrize("host", OWN)
def test_on_loopback_a_loopback_name_is_answered(host: str) -> None:
    async def test(address: str) -> None:
        said = await ask(address, f"GET /page HTTP/1.1\r\nhost:{host}\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 200 ")

    served(test)


@pytest.mark.parametrize("host", OTHERS)
def test_on_loopback_another_sites_name_is_refused_and_elsewhere_it_is_not(host: str) -> None:
    async def refused(address: str) -> None:
        said = await ask(address, f"GET /page HTTP/1.1\r\nX: localhost\r\nHost: {host}\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 421 ")
        assert b"hello" not in said
        both = await ask(address, f"GET /page HTTP/1.1\r\nHost: localhost\r\nHost: {host}\r\n\r\n".encode())
        assert both.startswith(b"HTTP/1.1 421 ")

    async def answered(address: str) -> None:
        said = await ask(
            f"127.0.0.1:{address.rpartition(':')[2]}", f"GET /page HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        )
        assert said.startswith(b"HTTP/1.1 200 ")

    served(refused)
    served(answered, host="0.0.0.0")


def test_the_configured_name_is_a_name_of_ones_own() -> None:
    assert http_origin.is_own(b"GET / HTTP/1.1\r\nHost: login1:9469\r\n\r\n", "Login1")
    assert not http_origin.is_own(b"GET / HTTP/1.1\r\nHost: login2:9469\r\n\r\n", "login1")


def test_a_head_that_is_too_long_is_refused() -> None:
    async def test(address: str) -> None:
        said = await ask(address, b"GET /page HTTP/1.1\r\nX: " + b"a" * 20_000)
        assert said.startswith(b"HTTP/1.1 431 ")

    served(test)


def test_a_page_that_fails_is_a_500_and_a_line_in_the_log_and_the_next_is_answered() -> None:
    async def test(address: str) -> None:
        assert (await ask(address, b"GET /fails HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
        assert (await ask(address, b"GET /page HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    assert '"message": "no page today"' in served(test)


def test_connections_that_say_nothing_hold_nobody_up_and_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_WITHIN", 0.5)

    async def test(address: str) -> None:
        silent = [await connect(address) for _ in range(3 * http_server.MOST_CONNECTIONS)]
        for _, writer in silent[::2]:
            writer.write(b"GET /page")
        assert (await ask(address, b"GET /page HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()

    served(test)


def test_of_too_many_connections_the_oldest_alone_is_dropped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_WITHIN", 3600.0)

    async def test(address: str) -> None:
        silent = [await connect(address) for _ in range(http_server.MOST_CONNECTIONS)]
        silent.append(await connect(address))
        async with asyncio.timeout(5):
            assert await silent[0][0].read() == b""
        await asyncio.sleep(0.2)
        assert not [index for index, (reader, _) in enumerate(silent[1:]) if reader.at_eof()]
        for _, writer in silent:
            writer.close()

    served(test)


def test_of_connections_that_came_at_one_moment_those_dropped_before_their_turn_go_too() -> None:
    async def test(address: str) -> None:
        host, _, port = address.rpartition(":")
        before = len(os.listdir("/proc/self/fd"))
        silent = [socket.create_connection((host, int(port))) for _ in range(90)]  # the loop does not turn meanwhile
        async with asyncio.timeout(3):  # before their heads are late
            while len(os.listdir("/proc/self/fd")) > before + len(silent) + http_server.MOST_CONNECTIONS:
                await asyncio.sleep(0.1)
        assert await asyncio.to_thread(silent[0].recv, 1) == b""
        for connection in silent:
            connection.close()

    served(test)


def test_one_that_does_not_read_its_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "ANSWER_WITHIN", 0.5)

    async def test(address: str) -> None:
        reader, writer = await connect(address, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\n\r\n")
        assert (await ask(address, b"GET /page HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(1.0)
        got = 0
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(1 << 20):
                got += len(block)
        assert got < 64 << 20
        writer.close()

    served(test)


def test_an_address_that_is_taken_is_a_warning() -> None:
    async def test(address: str) -> None:
        said = StringIO()
        second = Listener(PAGES, logs.logger(said))
        await second.open(address)
        assert '"event": "listening_failed"' in said.getvalue()
        assert '"level": "warning"' in said.getvalue()
        assert not second.is_open

    served(test)
