"""An S3 server for tests, as busy as a real one: every k-th request is answered 503 SlowDown, the others by moto.

python tests/support/slow_s3.py PORT K
"""

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
SAID = "/slowed"
"""GET it to hear how many requests were refused."""


class Busy:
    """WSGI around WSGI."""

    def __init__(self, app: Any, every: int):
        self.app, self.every, self.requests, self.refused = app, every, itertools.count(1), 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == SAID:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(self.refused).encode()]
        if next(self.requests) % self.every == 0:
            self.refused += 1
            # The request's body must be read, or the connection is of no more use.
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
        Busy(DomainDispatcherApplication(create_backend_app), int(sys.argv[2])),
        threaded=True,
    )
