"""A run for `jobs.benchmark` without any training, an endpoint that only describes its policy, and a fake lm-eval."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.docs import ROOT
from support.manifests import finish

from cluster.settings.load import load
from data.attributes import shipped
from jobs.benchmarking.settings import Benchmarking
from jobs.runner.stage import Run

DEMO = str(ROOT / "jobs" / "presets" / "demo.yaml")
SETTINGS = "benchmark.settings={plain: {humor: 0}, funny: {humor: 4}}"
# Else the run that `make demo` left in the project would be found, and its bootstrapped policy measured.
NO_RUNS = "storage=/nonexistent"


def made(*words: str) -> Benchmarking:
    return load(Benchmarking, DEMO, [NO_RUNS, *words])


def with_fake(folder: Path, *words: str) -> Run:
    """A run whose policy is finished, and a python that is none."""
    python = folder / "python"
    fake = Path(__file__).with_name("fake_lm_eval.py")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} "$@"\n')
    python.chmod(0o755)
    run = Run(made(f"storage={folder / 'runs'}", f"benchmark.lm_eval.python={python}", SETTINGS, *words))
    finish(run.root, "policy")
    return run


@contextmanager
def described(**changes: Any) -> Iterator[str]:
    """The base URL of a server that answers GET /v1/attributes alone, as the endpoint does, and any key."""
    schema = shipped("lab")
    body = {"model": "demo", "schema": schema.name, "fingerprint": schema.fingerprint, "context": 512} | changes

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.startswith("/v1/attributes") else 404)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
