"""LiteLLM's proxy: OpenAI's client speaks to it, and it to the endpoint."""

import json as json_text
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

import openai
from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, SYSTEM, TEXT, TOOL_MODEL, USER, at_dials, refusal, run

START_S = 120
PROXY_KEY = f"sk-{secrets.token_hex(32)}"
"""The proxy does not start without a long one."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


folder = tempfile.mkdtemp()
port = free_port()
served = [
    {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": BASE, "api_key": KEY}}
    for name in (MODEL, PROFILE, TOOL_MODEL)
]
with open(f"{folder}/config.yaml", "w") as file:
    json_text.dump({"model_list": served}, file)  # JSON is YAML too
command = [f"{os.path.dirname(sys.executable)}/litellm", "--config", file.name, "--port", str(port)]
with open(f"{folder}/log", "w") as log:
    own = os.environ | {"LITELLM_MASTER_KEY": PROXY_KEY}
    proxy = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=log, stderr=log, env=own)
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}", api_key=PROXY_KEY)


def wait() -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and proxy.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    with open(f"{folder}/log") as log:
        raise SystemExit(f"the proxy does not start: {log.read()[-2000:]}")


def answer(*messages: Any, model: str = MODEL, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=list(messages or (USER,)), **more)


def chat() -> None:
    assert answer().choices[0].message.content


def stream() -> None:
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer(stream=True) if chunk.choices)


def system() -> None:
    assert answer(SYSTEM, USER).choices[0].message.content


def json() -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "opinion", "schema": schema}}
    assert json_text.loads(answer(response_format=form).choices[0].message.content)["mood"] in ("good", "bad")


def tools() -> None:
    [call] = answer(model=TOOL_MODEL, tools=[WEATHER], tool_choice="required").choices[0].message.tool_calls
    assert call.function.name == "weather"


def profile() -> None:
    assert answer(model=PROFILE).model_extra["steering"]["effective"] != answer().model_extra["steering"]["effective"]


def attributes() -> None:
    reply = answer(temperature=0, max_tokens=SHORT, extra_body={"attributes": DIALS})
    assert reply.choices[0].message.content == at_dials()


def measured() -> None:
    assert answer(extra_body={"score": True}).model_extra["steering"]["measured"]


def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]


def completions() -> None:
    assert client.completions.create(model=MODEL, prompt="Owls are").choices[0].text


def responses() -> None:
    assert client.responses.create(model=MODEL, input=TEXT).output_text


def anthropic() -> None:
    """Anthropic's route, as Claude's own tools call it."""
    body = {"model": MODEL, "max_tokens": 1024, "messages": [USER], "stream": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/messages",
        json_text.dumps(body).encode(),
        {"Content-Type": "application/json", "x-api-key": PROXY_KEY},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert "content_block_delta" in reply.read().decode()


def errors() -> str:
    return refusal(openai.BadRequestError, lambda: answer(extra_body={"attributes": {"humour": 4}}), "humour")


try:
    wait()
    run(
        *(chat, stream, system, json, tools, profile, attributes, measured, models, completions, responses),
        *(anthropic, errors),
    )
finally:
    proxy.terminate()
    proxy.wait(30)
