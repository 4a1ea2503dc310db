"""A judge for tests: a small HTTP server in this process that speaks OpenAI's wire, and misbehaves when told to."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-of-the-test"


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    prompt: str
    number: int
    """How often this prompt was asked, from 1."""
    body: dict[str, Any]
    key: str
    at: float


@dataclass
class Answer:
    """What to send; `drop` closes the connection without a word, `slow_s` waits first."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop: bool = False
    slow_s: float = 0.0
    usage: bool = True


Behaviour = Callable[[Asked], Answer]


class JudgeServer:
    """What it was asked, and how it answers."""

    def __init__(self, behave: Behaviour):
        self.behave = behave
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._counts: Counter[str] = Counter()
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def counts(self) -> Counter[str]:
        """How often each prompt came."""
        with self._lock:
            return Counter(self._counts)

    def answer(self, body: dict[str, Any], key: str) -> tuple[Asked, Answer]:
        prompt = "\n".join(m["content"] for m in body["messages"])
        with self._lock:
            self._counts[prompt] += 1
            asked = Asked(prompt, self._counts[prompt], body, key, time.monotonic())
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            found = self.behave(asked)
            time.sleep(found.slow_s)
        finally:
            with self._lock:
                self._at_once -= 1
        return asked, found


def verdict_of(asked: Asked) -> str:
    """A steady opinion that follows from the prompt alone."""
    digest = int(hashlib.sha256(asked.prompt.encode()).hexdigest(), 16)
    return f"I think so. [[{'ABC'[digest % 3]}]]" if "[[A]]" in asked.prompt else f"Rating: [[{digest % 10 + 1}]]"


def well_behaved(asked: Asked) -> Answer:
    return Answer(verdict_of(asked))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, answer = self.judge.answer(body, self.headers.get("Authorization", ""))
        if answer.drop:
            self.close_connection = True
            return
        content = answer.body if answer.body is not None else json.dumps(_completion(body, answer)).encode()
        self.send_response(answer.status)
        about = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (about | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client that was killed is no error of the server's."""


@contextmanager
def serving(behave: Behaviour = well_behaved) -> Iterator[JudgeServer]:
    judge = JudgeServer(behave)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"judge": judge}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _completion(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        return {"error": {"message": answer.text, "type": "error", "param": None, "code": answer.headers.get("X-Code")}}
    found: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer.text}, "finish_reason": "stop"}],
    }
    return found | (
        {"usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}} if answer.usage else {}
    )
