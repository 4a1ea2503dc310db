"""An S3 server for tests, as busy as a real one: every k-th request is answered 503 SlowDown, the others by moto.

python tests/support/slow_s3.py PORT K [hold]

K 0 refuses none. With `hold` no file of weights is sent before /release was asked for. What was read is counted.
"""

import itertools
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
REFUSED = "/slowed"
"""GET it for the number of refused requests."""
COUNTED = "/reads"
"""GET it for how often each object was read, as JSON."""
RELEASE = "/release"


class Busy:
    """WSGI application around another one."""

    def __init__(self, app: Any, every: int, hold: bool = False):
        self.app, self.every, self.requests, self.refused = app, every, itertools.count(1), 0
        self.gets, self.released = Counter[str](), threading.Event()
        if not hold:
            self.released.set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == REFUSED:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(self.refused).encode()]
        if environ["PATH_INFO"] == RELEASE:
            self.released.set()
        if environ["PATH_INFO"] in (COUNTED, RELEASE):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.gets).encode()]
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].count("/") > 1:
            self.gets[environ["PATH_INFO"]] += 1
            if environ["PATH_INFO"].endswith(".safetensors"):
                self.released.wait(300)
        if self.every and next(self.requests) % self.every == 0:
            self.refused += 1
            # Read the request's body: the connection is useless otherwise.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(
                "503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))]
            )
            return [SLOW_DOWN]
        return self.app(environ, start_response)


if __name__ == "__main__":
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        Busy(DomainDispatcherApplication(create_backend_app), int(sys.argv[2]), "hold" in sys.argv),
        threaded=True,
    )
