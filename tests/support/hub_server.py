"""A hub of our own: models from a folder, some of them gated, every request counted.

It speaks what huggingface_hub and transformers ask when they read a model: its description, and its files.
"""

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "a" * 40


@dataclass
class HubServer:
    """The models in `folder`/owner/name. Use it as a context."""

    folder: Path
    gated: dict[str, str] = field(default_factory=dict)
    """owner/name -> the only token that may read its files; its description is open, as on the real hub."""
    gets: "Counter[str]" = field(default_factory=Counter)
    """File -> how often its bytes were sent."""

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content for a path."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if parts[4:5] == ["tree"]:
                return 200, {}, b"[]"  # no folder of further chat templates
            described = {"id": name, "sha": REVISION, "gated": "auto" if name in self.gated else False, "siblings": []}
            return (200, {}, json.dumps(described).encode()) if (self.folder / name).is_dir() else (404, {}, b"{}")
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        if name in self.gated and token != self.gated[name]:
            return (403 if token else 401), {"X-Error-Code": "GatedRepo"}, b"{}"
        found = self.folder / name / file
        if not found.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        content = found.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}, content


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self, with_content: bool) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, headers, content = hub.answer(self.path, token)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if with_content:
                if status == 200:
                    hub.gets[self.path.partition("?")[0].rsplit("/", 1)[-1]] += 1
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self._reply(with_content=False)

        def do_GET(self) -> None:
            self._reply(with_content=True)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
