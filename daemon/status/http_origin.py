"""Owns the check of a browser's origin: no other site may show, embed or read pages, or send a browser here.

A site can let its own name lead to 127.0.0.1 (DNS rebinding). Then a browser on this host sends that name as `Host` and
would give our answers to that site. A daemon that listens for other hosts cannot know the names that they use.
"""

import ipaddress

SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Fields of every response."""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this host's own: `localhost`, names below it, 127.0.0.0/8, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_own(head: bytes, own: str) -> bool:
    """Whether a request's `Host` is a loopback name or `own`, with any port (a tunnel has another); no browser's has none."""
    hosts = [_host(line) for line in head.split(b"\r\n")[1:] if line[:5].lower() == b"host:"]
    return all(host == own.lower() or is_loopback(host) for host in hosts)


def _host(line: bytes) -> str:
    said = line[5:].decode("latin-1").strip().lower()
    return said[1:].partition("]")[0] if said.startswith("[") else said.partition(":")[0].rstrip(".")
