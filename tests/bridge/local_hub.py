"""A hub on this machine, for the real client: repositories are dicts of files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = dict[str, bytes]


class _Hub(BaseHTTPRequestHandler):
    files: Files

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self) -> None:
        found = self.files.get(self.path.partition("/resolve/main/")[2])
        if found is None:
            self._answer({}, 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self._answer(found, **{"ETag": '"1"', "X-Repo-Commit": "c" * 40})

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._file()
        else:
            self._answer({"id": "me/mine", "sha": "c" * 40, "siblings": []})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else _chunks(self.rfile)
        if self.path.endswith("/create"):
            self._answer(
                {"url": "https://huggingface.co/me/mine", "name": "me/mine", "id": "me/mine"}
            )
        elif "/preupload/" in self.path:
            given = json.loads(body)["files"]
            self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in given
                    ]
                }
            )
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer({})

    def _commit(self, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.files[value["path"]] = base64.b64decode(value["content"])
        self._answer(
            {
                "commitUrl": "https://huggingface.co/me/mine/commit/" + "c" * 40,
                "commitOid": "c" * 40,
            }
        )


def _chunks(stream: Any) -> bytes:
    """A body that is sent in pieces, each with its length before it."""
    parts = []
    while size := int(stream.readline().strip() or b"0", 16):
        parts.append(stream.read(size))
        stream.readline()
    return b"".join(parts)


@contextmanager
def local_hub(files: Files) -> Iterator[str]:
    """The address of a hub with one repository, whose files are ``files``."""
    handler = type("Hub", (_Hub,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
