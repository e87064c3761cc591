"""Owns the routes on `metrics_address`: which page is at which path. A reload moves them to another address.

Another page is another entry of `pages`.
"""

import time
from http import HTTPStatus

from daemon.host.logs import Logger
from daemon.status import health, status_page
from daemon.status.http_server import Listener, Response
from daemon.status.metrics import TYPE, Metrics
from daemon.status.state_view import Sources
from daemon.status.status_page import StatusPage


class Endpoints:
    """The pages of one daemon, where there are to be any."""

    def __init__(self, sources: Sources, log: Logger) -> None:
        self._s = sources
        self._metrics = Metrics(sources)
        page = StatusPage(sources)
        pages = {path: status_page.file(*named) for path, named in status_page.FILES.items()}
        pages |= {"/status.json": page.status, "/statistics.json": page.statistics}
        pages |= {"/metrics": self._page, "/healthz": self._healthz, "/readyz": self._readyz}
        self._listener = Listener(pages, log)
        self._address = ""

    async def use(self, address: str) -> None:
        """Serves on `address` from now on, or nowhere if it is empty; says so, or why not."""
        if address == self._address and self._listener.is_open:
            return
        await self._listener.close()
        self._address = address
        if address:
            await self._listener.open(address)

    async def close(self) -> None:
        """Serves nothing any more."""
        await self._listener.close()

    def _page(self, _: str) -> Response:
        return Response(self._metrics.text(), TYPE)

    def _healthz(self, _: str) -> Response:
        reason = health.why_not_alive(self._s.pulse, time.monotonic())
        return _verdict([reason] if reason else [])

    def _readyz(self, _: str) -> Response:
        watchers = self._s.watchers
        reasons = health.why_not_ready(
            self._s.pulse,
            roots=watchers,
            began=[root for root, watcher in watchers.items() if watcher.free_bytes is not None],
            away=[root for root, watcher in watchers.items() if watcher.is_reachable is False],
            is_ledger_away=self._s.ledger.is_away,
        )
        return _verdict(reasons)


def _verdict(reasons: list[str]) -> Response:
    if not reasons:
        return Response(b"ok\n")
    return Response(
        ("\n".join(reasons) + "\n").encode(errors="backslashreplace"), status=HTTPStatus.SERVICE_UNAVAILABLE
    )
