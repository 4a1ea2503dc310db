"""Token budgets through the whole HTTP side: what is held at admission, what is used, and who pays for refused work."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI
from support.asgi import USER, Answered, app_around, ask, exchanged

from serve.auth import Team, hashed
from serve.request import Delta, Event, Failed, GenerationRequest, Started

BUDGET = 1000
TEAM = Team(name="games", tokens_per_minute=BUDGET)
PROMPT = 7


class Tokens:
    """Writes all tokens that a request may have, a few at a time; counts what was written, as an engine would."""

    def __init__(self, stalls_after: int | None = None) -> None:
        self.written, self._stalls_after = 0, stalls_after

    async def generate(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        yield Started(PROMPT)
        for count in range(1, request.sampling.max_tokens + 1):
            if count == self._stalls_after:
                await asyncio.sleep(3600)
            await asyncio.sleep(0)
            self.written += 1
            yield Delta("x", count)
        yield Delta("", request.sampling.max_tokens, "length")

    async def score(self, request: GenerationRequest, answer: str) -> dict[str, float]:
        self.written += PROMPT + len(answer)
        return {"humor": 1.0}


def app_of(tokens: Tokens) -> FastAPI:
    return app_around(tokens.generate, tokens.score, teams=[TEAM], keys_text=f"games {hashed('key')}")


async def asked(app: FastAPI, gone_after: int | None = None, **fields: Any) -> Answered:
    body = json.dumps({"messages": [USER], **fields}).encode()
    return await exchanged(app, "POST", "/v1/chat/completions", body, gone_after, key="key")


def room(app: FastAPI) -> int:
    """Tokens that the budget has left, read off the sentence that refuses a request for all of it."""
    error = ask(app, "key", messages=[USER], max_tokens=61, n=8, score=True).json["error"]["message"]
    assert "has used" in error, error
    return BUDGET - int(error.split("has used ")[1].split()[0])


@pytest.mark.case("B10: 500 requests at the same time")
@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 40},
        {"max_tokens": 40, "stream": True},
        {"max_tokens": 20, "n": 8, "seed": 1},
        {"max_tokens": 10, "best_of": 16},
        {"max_tokens": 10, "best_of": 16, "target_distance": 1},
        {"max_tokens": 20, "n": 4, "score": True},
    ],
)
def test_many_requests_at_once_spend_no_more_than_the_budget(fields: dict[str, Any]) -> None:
    tokens = Tokens()
    app = app_of(tokens)

    async def go() -> Counter[int]:
        at_once = await asyncio.gather(*(asked(app, **fields) for _ in range(500)))
        later = [await asked(app, **fields) for _ in range(30)]
        return Counter(answered.status for answered in [*at_once, *later])

    found = asyncio.run(go())
    assert set(found) == {200, 429}
    spent = tokens.written + PROMPT * found[200]
    assert spent <= BUDGET
    # What a request may need stays free: the bound of its prompt counts once, and once more for each rated answer.
    assert spent > BUDGET * (0.1 if "score" in fields or "best_of" in fields else 0.5)


@pytest.mark.case("B10: a caller that leaves")
@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_pays_what_was_written_and_no_more(stream: bool) -> None:
    app = app_of(Tokens(stalls_after=31))

    async def leave() -> None:
        task = asyncio.create_task(asked(app, max_tokens=64, stream=stream))
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert BUDGET - room(app) == PROMPT + 30


@pytest.mark.case("B10: a prompt that was tokenized and does not fit")
def test_a_refused_prompt_costs_what_it_was_tokenized_for() -> None:
    async def too_long(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        yield Failed("too long", 400, "messages", "context_length_exceeded", prompt_tokens=600)

    app = app_around(too_long, teams=[TEAM], keys_text=f"games {hashed('key')}")
    assert [ask(app, "key", messages=[USER], max_tokens=9).status for _ in range(4)] == [400, 400, 429, 429]


@pytest.mark.case("B10: a caller that leaves while its prompt is tokenized")
def test_who_leaves_before_its_prompt_is_counted_pays_for_its_characters() -> None:
    async def tokenizing(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(3600)
        yield Started(1)

    app = app_around(tokenizing, Tokens().score, teams=[TEAM], keys_text=f"games {hashed('key')}")

    async def leave() -> None:
        task = asyncio.create_task(asked(app, messages=[{"role": "user", "content": "x" * 1600}]))
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert 400 <= BUDGET - room(app) < 500


@pytest.mark.case("B10: a replica that dies")
def test_a_generation_that_fails_gives_its_rest_back() -> None:
    async def lost(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        yield Started(PROMPT)
        yield Delta("xx", 2)
        yield Failed("lost", 503)

    app = app_around(lost, Tokens().score, teams=[TEAM], keys_text=f"games {hashed('key')}")
    for stream in (False, True):
        ask(app, "key", messages=[USER], max_tokens=60, stream=stream)
    assert BUDGET - room(app) == 2 * (PROMPT + 2)


def test_a_request_above_the_budget_is_a_sentence() -> None:
    error = ask(app_of(Tokens()), "key", messages=[USER], best_of=16).json["error"]
    assert error["code"] == "request_exceeds_budget"
    assert "2048 tokens (1024 for 16 answers of up to 64, 1024 to rate 16 of them)" in error["message"]
