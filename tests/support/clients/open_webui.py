"""Open WebUI's own backend, as its page drives it: with its defaults, which send tools unasked and long titles."""

import json as json_text
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

from harness import BASE, KEY, MODEL, PROFILE, TEXT, run

START_S = 300
PROGRAM = os.path.join(os.path.dirname(sys.executable), "open-webui")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


folder = tempfile.mkdtemp()
port = free_port()
URL = f"http://127.0.0.1:{port}"
own = {
    "DATA_DIR": folder,
    "OPENAI_API_BASE_URL": BASE,
    "OPENAI_API_KEY": KEY,
    "ENABLE_OLLAMA_API": "false",
    "WEBUI_SECRET_KEY": "of a test, which nobody else can reach",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",  # else it downloads a model when it starts
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "true",
}
command = [PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(port)]
with open(f"{folder}/log", "w") as log:
    backend = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
headers = {"Content-Type": "application/json"}


def call(path: str, **fields: Any) -> Any:
    body = json_text.dumps(fields).encode() if fields else None
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, body, headers), timeout=120) as answer:
            return json_text.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read()[:600]!r}") from None


def wait() -> None:
    """Until it is up; then the first account that signs up is the administrator's."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and backend.poll() is None:
        try:
            call("/health")
            signed_up = call("/api/v1/auths/signup", name="Ann", email="ann@example.com", password="Open-sesame-1")
            headers["Authorization"] = f"Bearer {signed_up['token']}"
            return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the backend does not start: {tail()}")


def tail() -> str:
    with open(f"{folder}/log") as file:
        return file.read()[-3000:]


def answered(*messages: dict[str, str], model: str = MODEL) -> str:
    """A new chat as the page begins it: the answer is written into the chat, which is asked until it is there."""
    call("/api/models")
    user, assistant = str(uuid.uuid4()), str(uuid.uuid4())
    question = {"id": user, "parentId": None, "childrenIds": [assistant], **messages[-1], "models": [model]}
    started = call(
        "/api/chat/completions",
        stream=True,
        model=model,
        messages=list(messages),
        params={},
        features={},
        session_id="a page",
        id=assistant,
        parent_id=None,
        user_message=question,
        background_tasks={"title_generation": True},
    )
    chat = started["chat_id"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = call(f"/api/v1/chats/{chat}")["chat"]["history"]["messages"][assistant]
        if found.get("error"):
            raise AssertionError(str(found["error"]))
        if found.get("done"):
            return str(found["content"])
        time.sleep(0.5)
    raise AssertionError("no answer was written")


def chat() -> None:
    """An answer, and a title, for which it asks for 1,000 tokens."""
    assert answered({"role": "user", "content": TEXT})
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "They are birds."}]
    reply = call("/api/v1/tasks/title/completions", model=MODEL, messages=messages, chat_id="")
    assert reply["choices"][0]["message"]["content"] is not None


def profile() -> None:
    assert answered({"role": "user", "content": TEXT}, model=PROFILE)


def models() -> str:
    found = [model["id"] for model in call("/api/models")["data"]]
    assert {MODEL, PROFILE} <= set(found), found
    return ", ".join(found)


def turns() -> None:
    """What it sends after an error: two questions in a row."""
    assert answered({"role": "user", "content": "Why?"}, {"role": "user", "content": TEXT})


try:
    wait()
    run(chat, models, profile, turns)
finally:
    backend.terminate()
    backend.wait(60)
    print(tail(), file=sys.stderr)
