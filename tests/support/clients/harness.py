"""What the scripts beside it share: the endpoint's address, and a line of JSON for each feature that was tried.

Runs in the environments of the clients, so it needs the standard library alone. A feature is a function: it raises if
the client fails, and what it returns is a note.
"""

import json
import os
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

URL = os.environ["STEERLM_URL"]
BASE = f"{URL}/v1"
MODEL, PROFILE, TOOL_MODEL = "demo", "demo:education", "chatml"
KEY = "none"
"""The endpoint has no keys, and every client wants one."""
TEXT = "Tell me about owls."
USER = {"role": "user", "content": TEXT}
SYSTEM = {"role": "system", "content": "Answer in one sentence."}
SHORT = 24
"""Tokens; where a client is tried with its defaults, it sends no length at all."""
DIALS = {"helpfulness": 0, "humor": 4}
SHOWN_CHARS = 400


def raw(path: str = "/v1/chat/completions", **fields: Any) -> Any:
    """The endpoint's own reply, without any client."""
    body = json.dumps(fields).encode() if fields else None
    request = urllib.request.Request(URL + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def expected(*messages: dict[str, str], model: str = MODEL, **fields: Any) -> str:
    """The most likely answer: what a client must get that asks for the same at temperature 0."""
    sent = {"model": model, "messages": list(messages or (USER,)), "temperature": 0, "max_tokens": SHORT, **fields}
    return str(raw(**sent)["choices"][0]["message"]["content"])


def at_dials() -> str:
    """The same at DIALS; asserts that it differs from the answer without them."""
    answer = expected(attributes=DIALS)
    assert answer != expected(), "the dials change nothing"
    return answer


def run(*features: Callable[[], str | None]) -> None:
    """Try each feature, or those that argv names."""
    wanted = sys.argv[1:]
    for feature in features:
        if wanted and feature.__name__ not in wanted:
            continue
        line: dict[str, object] = {"feature": feature.__name__}
        try:
            line |= {"works": True, "note": feature() or ""}
        except BaseException as problem:
            cause = f"{type(problem).__name__}: {problem}"
            line |= {"works": False, "note": cause[:SHOWN_CHARS]}
            traceback.print_exc()
        print(json.dumps(line), flush=True)


def refusal(error: type[Exception], call: Callable[[], object], word: str) -> str:
    """The endpoint's sentence, as the client's own `error` has it; asserts that it says `word`."""
    try:
        call()
    except error as problem:
        said = str(problem)
    else:
        raise AssertionError(f"no {error.__name__}")
    assert word in said, f"{word!r} is not in {said}"
    return said[:SHOWN_CHARS]
