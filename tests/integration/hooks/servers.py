"""Owns the local servers that hooks talk to in tests: one that writes requests down, and one that is a hub for `hf upload`."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Recorder(BaseHTTPRequestHandler):
    """Answers 200, or what `refuse` says, and keeps (method, path, headers, body)."""

    requests: ClassVar[list[tuple[str, str, dict[str, str], bytes]]]
    refuse: ClassVar[list[int]]
    """Status codes of the next requests."""

    def _take(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append((self.command, self.path, dict(self.headers), body))
        return body

    def _answer(self, said: Any = None, code: int = 200, **headers: str) -> None:
        body = json.dumps(said).encode() if said is not None else b""
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _any(self) -> None:
        self._take()
        self._answer({}, self.refuse.pop(0) if self.refuse else 200)

    do_GET = do_POST = do_PUT = _any  # noqa: N815 - http.server's names

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


class Hub(Recorder):
    """What huggingface_hub 1.33 asks of the hub for `hf upload`: repository, branch, preupload, LFS objects, commit."""

    branches: ClassVar[dict[str, list[dict[str, str]]]]
    """Branch -> its commits, each path -> sha256 of the content."""
    objects: ClassVar[dict[str, bytes]]
    """LFS objects by sha256."""

    def do_GET(self) -> None:
        self._take()
        branch = self.path.rpartition("/revision/")[2]
        if branch not in self.branches:
            self._answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        else:
            self._answer({"id": "team/model", "_id": "1", "sha": "0" * 40, "siblings": []})

    def do_PUT(self) -> None:
        body = self._take()
        if self.refuse:
            self._answer({}, self.refuse.pop(0))
            return
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.objects[self.path.rpartition("/")[2]] = body
        self._answer()

    def do_POST(self) -> None:
        body = self._take()
        match self.path.partition("?")[0].split("/")[1:]:
            case ["api", "repos", "create"]:
                self._answer({"url": f"http://{self.headers['Host']}/team/model", "name": "team/model"})
            case ["api", "models", "team", "model", "branch", branch]:
                self.branches[branch] = []
                self._answer({})
            case ["api", "models", "team", "model", "preupload", _]:
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = {
                    path: "lfs" if path.endswith((".safetensors", "tokenizer.json")) else "regular" for path in paths
                }
                self._answer({"files": [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]})
            case ["team", "model.git", "info", "lfs", "objects", "batch"]:
                self._answer({"transfer": "basic", "objects": [self._where(o) for o in json.loads(body)["objects"]]})
            case ["api", "models", "team", "model", "commit", branch]:
                self._commit(branch, [json.loads(line) for line in body.splitlines()])
            case ["api", "validate-yaml"]:
                self._answer({"errors": [], "warnings": []})
            case _:
                self._answer({"error": f"not built: {self.path}"}, 501)

    def _where(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.objects:
            return asked
        return asked | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{asked['oid']}"}}}

    def _commit(self, branch: str, lines: list[dict[str, Any]]) -> None:
        files: dict[str, str] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = hashlib.sha256(base64.b64decode(value["content"])).hexdigest()
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.objects, "a commit names an object that was not uploaded"
                files[value["path"]] = value["oid"]
        self.branches[branch].append(files)
        url = f"http://{self.headers['Host']}/team/model/commit/{'1' * 40}"
        self._answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})


@contextmanager
def serving(kind: type[Recorder]) -> Iterator[tuple[type[Any], str]]:
    """A server of this kind on a loopback port: its own handler class (where what it kept lies), and its address."""
    handler = type(kind.__name__, (kind,), {"requests": [], "refuse": [], "branches": {}, "objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
