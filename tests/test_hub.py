"""Pushing to the hub, against a server of our own that speaks the part of its protocol which small files need."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from data.storage import Storage
from jobs.exporting import hub
from jobs.exporting.hub import push, require_token
from jobs.runner.stage import StageError

SECRET = "hf_" + "s3cret" * 5


class Hub:
    """What was asked, and what lies in the repositories."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuses = False
        self.endpoint = ""

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refuses:
            return 403, {"error": f"no write access for {SECRET}"}
        if path.endswith("/api/repos/create"):
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.endpoint}/me/model"}
        if path.endswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        assert "/commit/" in path, path
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.endpoint}/me/model/commit/{'0' * 40}"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            state.tokens.add(self.headers.get("Authorization", ""))
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = (
                state.answer(self.path.partition("?")[0], body)
                if self.command == "POST" or state.refuses
                else (200, {"sha": "0" * 40, "siblings": []})
            )
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = _reply

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.endpoint = endpoint = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(hub, "HfApi", lambda token: HfApi(endpoint=endpoint, token=token))
        monkeypatch.setenv("HF_TOKEN", SECRET)
        yield state
        http.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    (tmp_path / "README.md").write_text("---\nlicense: other\ntags: [steerlm]\n---\n# A card\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    return Storage(str(tmp_path))


def test_a_folder_is_pushed_as_it_is_with_the_token_of_the_environment(
    server: Hub, folder: Storage, capfd: pytest.CaptureFixture[str]
) -> None:
    require_token("me/model")
    address = push(folder, "me/model", "model", private=True)
    assert address
    assert server.files["model.safetensors"] == bytes(range(256))
    assert server.files["README.md"].startswith(b"---\nlicense: other")
    assert (server.made[0]["name"], server.made[0].get("private", server.made[0].get("visibility") == "private")) == (
        "model",
        True,
    )
    assert server.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in "".join(capfd.readouterr())


def test_a_refusal_is_one_sentence_without_the_token(server: Hub, folder: Storage) -> None:
    server.refuses = True
    with pytest.raises(StageError, match=r"is whole, but me/model did not take it: .*403") as refused:
        push(folder, "me/model", "dataset", private=False)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("repo", "sentence"),
    [("me/model", "HF_TOKEN is not set"), ("a//b", "no name of a repository"), ("a/b/c", "no name of a repository")],
)
def test_what_cannot_be_pushed_is_refused_first(monkeypatch: pytest.MonkeyPatch, repo: str, sentence: str) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(StageError, match=sentence):
        require_token(repo)
