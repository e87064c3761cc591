"""Owns the HTTP listener on `metrics_address`: GET over HTTP/1.1, one request per connection.

Its clients are scrapers and a person's browser. There is no proxy, no keep-alive and no library. Slow, large or many
requests cost nothing: a head has 8 KiB and five seconds, an answer ten seconds, and of more than 32 connections the
oldest is dropped. While it listens on loopback only, it refuses a browser that another site's name led here
(`http_origin`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from daemon.config import units
from daemon.host.logs import Logger
from daemon.status import http_origin

MOST_HEAD = 8192
"""Bytes of a request, all of it."""
MOST_CONNECTIONS = 32
HEAD_WITHIN, ANSWER_WITHIN = 5.0, 10.0
"""Seconds that the other end has."""
OPEN_WITHIN = 5.0
"""Seconds that finding a host's address may take."""


class Response(NamedTuple):
    """What a page says."""

    body: bytes
    type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


Page = Callable[[str], Response]
"""Makes an answer from what follows the `?`, as it was sent."""


class Listener:
    """Answers `pages` by their paths; a page is made in the loop, so it must be quick."""

    def __init__(self, pages: Mapping[str, Page], log: Logger) -> None:
        self._pages, self._log = pages, log
        self._server: asyncio.Server | None = None
        self._host, self._is_local = "", True
        self._open: dict[asyncio.Task[None], None] = {}
        """Connections, the oldest first."""

    async def open(self, address: str) -> None:
        """Listens on `address`; says so, or that it cannot (then everything else goes on)."""
        self._host, port = units.address(address)
        try:
            async with asyncio.timeout(OPEN_WITHIN):
                self._server = await asyncio.start_server(self._accept, self._host, port, limit=MOST_HEAD)
        except OSError as error:
            hint = "set metrics_address to a free one, or to nothing; SIGHUP tries again"
            self._log.warning(
                "listening_failed", address=address, message=str(error) or type(error).__name__, hint=hint
            )
        else:
            self._is_local = all(http_origin.is_loopback(socket.getsockname()[0]) for socket in self._server.sockets)
            self._log.info("listening", address=address)

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def close(self) -> None:
        """Lets go of the address and of every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._serve(reader, writer))
        self._open[task] = None
        task.add_done_callback(lambda done: self._end(done, writer))

    def _end(self, done: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        """Whatever did not go out by now goes with its descriptor, also where the task was dropped before its first line."""
        self._open.pop(done, None)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # `drain` waits for all of it
        with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(HEAD_WITHIN):
                head = await _head(reader)
            async with asyncio.timeout(ANSWER_WITHIN):
                writer.write(self._respond(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()

    def _respond(self, head: bytes) -> bytes:
        """The whole response; `head` is empty where the request was too long."""
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        target, _, version = rest.rpartition(" ")
        path, _, query = target.partition("?")
        if not head:
            answer = _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif not version.startswith("HTTP/1."):
            answer = _refusal(HTTPStatus.BAD_REQUEST)
        elif method not in ("GET", "HEAD"):
            answer = _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        elif path not in self._pages:
            answer = _refusal(HTTPStatus.NOT_FOUND)
        elif self._is_local and not http_origin.is_own(head, self._host):
            answer = _refusal(HTTPStatus.MISDIRECTED_REQUEST)
        else:
            answer = self._page(path, query)
        allowed = {"Allow": "GET, HEAD"} if answer.status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        own = {"Content-Type": answer.type, "Content-Length": len(answer.body), "Connection": "close"}
        fields = own | http_origin.SAFE | allowed
        lines = [f"HTTP/1.1 {answer.status} {answer.status.phrase}", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else answer.body)

    def _page(self, path: str, query: str) -> Response:
        try:
            return self._pages[path](query)
        except Exception as error:  # a page is for looking: what is wrong with it must not end the daemon
            self._log.error("page_failed", page=path, error=type(error).__name__, message=str(error))
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """A request's head, empty where it is too long. Raises IncompleteReadError where the other end left."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return b""


def _refusal(status: HTTPStatus) -> Response:
    return Response(f"{status.phrase}\n".encode(), status=status)
