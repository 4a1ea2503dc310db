"""promptfoo, with its providers for OpenAI's three routes."""

import json as json_text
import os
import subprocess
import tempfile
from typing import Any

from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, TEXT, TOOL_MODEL, at_dials, expected, run

PROMPTFOO = os.path.join(os.environ["CLIENT_ENVIRONMENT"], "node_modules", ".bin", "promptfoo")
OFF = ("PROMPTFOO_DISABLE_TELEMETRY", "PROMPTFOO_DISABLE_UPDATE", "PROMPTFOO_DISABLE_REMOTE_GENERATION")
GREEDY = {"temperature": 0, "max_tokens": SHORT}


def evaluated(provider: str, prompt: Any = TEXT, **config: Any) -> Any:
    """The output of one prompt; asserts that promptfoo met no error."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"id": provider, "config": {"apiBaseUrl": BASE, "apiKey": KEY, **config}}
        text = prompt if isinstance(prompt, str) else json_text.dumps(prompt)
        wanted = {"prompts": [text], "providers": [own], "tests": [{"vars": {}}]}
        with open(f"{folder}/promptfooconfig.json", "w") as file:
            json_text.dump(wanted, file)
        words = [PROMPTFOO, "eval", "-c", file.name, "-o", f"{folder}/found.json", "--no-cache", "--no-progress-bar"]
        environ = {**os.environ, **dict.fromkeys(OFF, "true"), "PROMPTFOO_CONFIG_DIR": folder}
        done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=180)
        with open(f"{folder}/found.json") as file:
            [result] = json_text.load(file)["results"]["results"]
    assert not result.get("error"), result["error"]
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return result["response"]["output"]


def chat() -> None:
    assert evaluated(f"openai:chat:{MODEL}")


def system() -> None:
    turns = [{"role": "system", "content": "Answer in one sentence."}, {"role": "user", "content": TEXT}]
    assert evaluated(f"openai:chat:{MODEL}", turns)


def json() -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "opinion", "schema": schema, "strict": True}}
    assert evaluated(f"openai:chat:{MODEL}", response_format=form)["mood"] in ("good", "bad")


def tools() -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    own = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    assert "weather" in json_text.dumps(evaluated(f"openai:chat:{TOOL_MODEL}", tools=own, tool_choice="required"))


def profile() -> None:
    assert evaluated(f"openai:chat:{PROFILE}", **GREEDY) == expected(model=PROFILE)


def attributes() -> None:
    assert evaluated(f"openai:chat:{MODEL}", passthrough={"attributes": DIALS}, **GREEDY) == at_dials()


def completions() -> None:
    assert evaluated(f"openai:completion:{MODEL}", "Owls are")


def responses() -> None:
    assert evaluated(f"openai:responses:{MODEL}")


run(chat, system, json, tools, profile, attributes, completions, responses)
