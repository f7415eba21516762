"""A hub of one model over HTTP on this machine, with the faults a real one has."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"


@dataclass
class StandInHub:
    """What it serves and how it misbehaves; `requests` records (method, path, range, authorization)."""

    files: dict[str, bytes]
    name: str = "google/gemma-2-2b-it"
    is_gated: bool = False
    cut_after: int | None = None
    n_cuts: int = 0
    redirects_to: str | None = None
    ignores_ranges: bool = False
    status: int | None = None
    message: str | None = None
    lies_about: str | None = None
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    def __enter__(self) -> "StandInHub":
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def ranges(self, name: str) -> list[str | None]:
        """Return the ranges asked of a file, one per request."""
        return [r for method, path, r, _ in self.requests if method == "GET" and path.endswith(f"/{name}")]

    def info(self) -> dict[str, object]:
        siblings = []
        for name, data in self.files.items():
            sibling: dict[str, object] = {"rfilename": name, "size": len(data)}
            sha256 = hashlib.sha256(b"other" if name == self.lies_about else data).hexdigest()
            sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if name.endswith((".safetensors", ".bin", ".model")):
                sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
            siblings.append(sibling)
        return {"id": self.name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


class _Handler(BaseHTTPRequestHandler):
    state: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.state
        authorization = self.headers.get("Authorization")
        hub.requests.append((self.command, self.path, self.headers.get("Range"), authorization))
        path = self.path.split("?")[0]
        if hub.status is not None:
            return self._refuse(hub.status, None)
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/revision/")
            if parts[0] != hub.name:
                return self._refuse(404, "RepoNotFound")
            if parts[1:] not in ([], ["main"], [COMMIT]):
                return self._refuse(404, "RevisionNotFound")
            return self._send(200, json.dumps(hub.info()).encode())
        if hub.is_gated and authorization != f"Bearer {TOKEN}":
            return self._refuse(401 if authorization is None else 403, "GatedRepo")
        name = path.rpartition("/")[2]
        if hub.redirects_to is not None and path.startswith("/google/"):
            return self._send(302, b"", {"Location": f"{hub.redirects_to}/store/{name}"})
        return self._file(hub.files[name])

    def _file(self, data: bytes) -> None:
        hub = self.state
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        start = 0 if hub.ignores_ranges else start
        rest = data[start:]
        status = 200 if hub.ignores_ranges else 206
        if hub.cut_after is not None and len(rest) > hub.cut_after and hub.n_cuts > 0:
            hub.n_cuts -= 1
            self._head(status, len(rest), {})
            self.wfile.write(rest[: hub.cut_after])
            self.close_connection = True
            return
        self._send(status, rest, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def _refuse(self, status: int, code: str | None) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": self.state.message}
        self._send(status, b"{}", {key: value for key, value in told.items() if value is not None})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(data), headers or {})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, n_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(n_bytes))
        self.send_header("X-Repo-Commit", COMMIT)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
