"""A running endpoint for tests: started as `python -m serve` starts it, spoken to over HTTP."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.docs import ROOT

from serve.deploy import start
from serve.locate import Located
from serve.settings import ScorerSettings, ServedEngineSettings, ServeSettings

SAMPLED = {"temperature": 1, "seed": 3, "max_tokens": 24}
"""Random weights repeat themselves at temperature 0 (line breaks, here), so text comes from a seed."""
QUESTION = [{"role": "user", "content": "Tell me about the moon."}]


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint, as a client sees it."""

    url: str
    key: str | None = None

    @property
    def _headers(self) -> dict[str, str]:
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return {"Content-Type": "application/json", **key}

    def get(self, path: str) -> tuple[int, bytes]:
        return self._exchange(urllib.request.Request(self.url + path, headers=self._headers))

    def delete(self, path: str) -> tuple[int, bytes]:
        return self._exchange(urllib.request.Request(self.url + path, headers=self._headers, method="DELETE"))

    def post(self, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, body, self._headers)
        status, answer = self._exchange(request)
        return status, json.loads(answer)

    def chat(self, **fields: Any) -> tuple[int, Any]:
        return self.post(json.dumps({"messages": QUESTION, **SAMPLED, **fields}).encode())

    def stream(self, **fields: Any) -> Iterator[Any]:
        """The chunks as they come; closing the iterator closes the connection."""
        body = json.dumps({"messages": QUESTION, **SAMPLED, "stream": True, **fields}).encode()
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", body, self._headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while line := answer.readline():
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            connection.close()

    def _exchange(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@contextmanager
def running(
    models: Sequence[Located], predictor: str | None = None, max_num_seqs: int = 2, **settings: Any
) -> Iterator[Endpoint]:
    """An endpoint on a free port, with settings that leave room on a small machine; taken down at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    small = {
        "num_cpus": 0.1,
        "engine": ServedEngineSettings(max_num_seqs=max_num_seqs),
        "scorer": ScorerSettings(num_cpus=0.1),
        "access_log": False,
    }
    started = start(ServeSettings(**{"port": port, **small, **settings}), models, predictor)
    try:
        yield Endpoint(started.url)
    finally:
        started.stop()


@contextmanager
def started(command: Sequence[str], log_folder: Path, environ: Mapping[str, str]) -> Iterator[Endpoint]:
    """An endpoint that a command starts at {port}, once it is ready; ended as Ctrl-C ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    output = log_folder / "serve.log"
    words = [word.replace("{port}", str(port)) for word in command]
    with output.open("w") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, env=dict(environ), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    endpoint = Endpoint(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 180
        while not _is_ready(endpoint):
            assert process.poll() is None, output.read_text()[-2000:]
            assert time.monotonic() < deadline, output.read_text()[-2000:]
            time.sleep(0.5)
        yield endpoint
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(60)


def _is_ready(endpoint: Endpoint) -> bool:
    try:
        return endpoint.get("/readyz")[0] == 200
    except OSError:
        return False
