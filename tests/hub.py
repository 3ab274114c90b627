"""A hub of our own: answers what huggingface_hub asks for from a folder, with faults on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, `owner/model`, at one commit.

    error: status and error code of every answer; cut: file -> bytes after which its next download
    breaks off, and the hub goes down; flipped: files that arrive with a wrong bit. asked: what was
    downloaded, (file, first byte).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gated = False
        self.error: tuple[int, str] | None = None
        self.cut: dict[str, int] = {}
        self.goes_down = True
        self.flipped: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.url = ""

    def siblings(self) -> list[dict[str, Any]]:
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return [
            {
                "rfilename": p.relative_to(self.folder).as_posix(),
                "size": p.stat().st_size,
                "blobId": hashlib.sha1(p.read_bytes()).hexdigest(),
            }
            for p in files
        ]

    @contextmanager
    def serve(self) -> Iterator[Hub]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if hub.error:
                self._refuse(*hub.error)
            elif path.startswith("/api/models/owner/model/tree/"):
                entries = [
                    {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"]}
                    for s in hub.siblings()
                ]
                self._json(entries)
            elif path in (
                "/api/models/owner/model",
                "/api/models/owner/model/revision/main",
                f"/api/models/owner/model/revision/{COMMIT}",
            ):
                self._json(
                    {
                        "id": "owner/model",
                        "sha": COMMIT,
                        "gated": hub.gated and "auto",
                        "cardData": {"license": "openrail"},
                        "siblings": hub.siblings(),
                    }
                )
            elif path.startswith("/api/models/owner/model/revision/"):
                self._refuse(404, "RevisionNotFound")
            elif path.startswith("/owner/model/resolve/"):
                self._file(path.split("/", 5)[5], body)
            else:
                self._refuse(401, "RepoNotFound")

        def _json(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, name: str, body: bool) -> None:
            path = hub.folder / name
            if self.path.split("/")[4] not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound")
                return
            if hub.gated or not path.is_file():
                self._refuse(*((403, "GatedRepo") if hub.gated else (404, "EntryNotFound")))
                return
            data = path.read_bytes()
            ranged = self.headers.get("Range", "bytes=0-")
            start = int(ranged.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            kind = "sha256" if name.endswith(".safetensors") else "sha1"  # large files are Git LFS'
            self.send_header("ETag", f'"{hashlib.new(kind, data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body:
                hub.asked.append((name, start))
                end = hub.cut.pop(name, None)
                if name in hub.flipped:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.wfile.write(data[start:end])
                hub.error = (503, "") if end and hub.goes_down else hub.error

    return Handler
