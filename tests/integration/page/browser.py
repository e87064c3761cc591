"""Owns a headless Chromium for tests: Debian's, driven by its own chromedriver over WebDriver (W3C), with no library.

It says what its console said and what it asked of whom.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1400", "--force-device-scale-factor=1", "--lang=en-US",
)  # fmt: skip


def install() -> str:
    """Has chromium and chromedriver on this host; returns why not, or ""."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "no chromium and chromedriver here, and they cannot be installed: needs root on Debian"
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    wanted = ["install", "-y", "--no-install-recommends", "chromium", "chromium-driver", "fonts-dejavu-core"]
    for command in (["update"], wanted):
        done = subprocess.run(["apt-get", "-qq", *command], env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"apt-get {command[0]}: {done.stderr.strip()[-200:]}"
    return ""


class Browser:
    """One window."""

    def __init__(self, driver: str, folder: Path) -> None:
        self._driver = driver
        options = {"args": [*_FLAGS, f"--user-data-dir={folder}"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"
        self.asked: list[str] = []
        """Addresses of all that pages asked for, as of the last `complaints`."""

    def _call(self, method: str, path: str, said: Any = None) -> Any:
        payload = json.dumps(said if said is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self._driver + path, payload, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from None

    def open(self, address: str) -> None:
        """Goes to a page, and forgets what was asked and said before."""
        self.complaints()
        self.asked.clear()
        self._call("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function's body returns in the page."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def text(self, selector: str = "body") -> str:
        """What a person reads there; empty where there is nothing."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def wait_for(self, script: str, seconds: float = 30.0) -> Any:
        """What a function's body returns, once that is something. Raises AssertionError with the page's text."""
        ends = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < ends, (script, self.text()[:2000])
            time.sleep(0.2)
        return found

    def press(self, *keys: str) -> None:
        """Keys, one after the other, on what has the focus (WebDriver's code points)."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def move_to(self, x: int, y: int) -> None:
        """The pointer, in the window's pixels."""
        move = {"type": "pointerMove", "duration": 0, "x": x, "y": y}
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self._call("POST", f"{self._session}/actions", {"actions": [pointer]})

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        said = {"cmd": command, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", said)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def complaints(self) -> list[str]:
        """What the console said since the last time, warnings and errors."""
        for entry in self._call("POST", f"{self._session}/se/log", {"type": "performance"}):
            said = json.loads(entry["message"])["message"]
            url = said["params"]["request"]["url"] if said["method"] == "Network.requestWillBeSent" else "chrome:"
            self.asked += [url] if not url.startswith("chrome:") else []  # the browser's own first page
        found = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] in ("WARNING", "SEVERE")]

    def close(self) -> None:
        """Ends it."""
        self._call("DELETE", self._session)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A window of a browser of its own, with an empty profile below `folder`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with (folder / "chromedriver.log").open("w") as log:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(lambda: urllib.request.urlopen(f"{address}/status", timeout=5).close(), driver)
        window = Browser(address, folder / "profile")
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait(20)


def _wait(attempt: Callable[[], None], driver: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 30
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > ends or driver.poll() is not None:
                raise
            time.sleep(0.1)
