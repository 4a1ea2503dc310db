"""LiteLLM, called as a library."""

import asyncio
from typing import Any, Literal

import litellm
from harness import (
    BASE,
    DIALS,
    KEY,
    MODEL,
    PROFILE,
    SHORT,
    SYSTEM,
    TEXT,
    TOOL_MODEL,
    USER,
    at_dials,
    expected,
    refusal,
    run,
)
from pydantic import BaseModel

HERE = {"api_base": BASE, "api_key": KEY}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


class Opinion(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def answer(*messages: Any, model: str = MODEL, **more: Any) -> Any:
    return litellm.completion(f"openai/{model}", list(messages or (USER,)), **HERE, **more).choices[0].message


def chat() -> None:
    assert answer().content
    assert asyncio.run(litellm.acompletion(f"openai/{MODEL}", [USER], **HERE)).choices[0].message.content


def stream() -> None:
    chunks = litellm.completion(f"openai/{MODEL}", [USER], stream=True, **HERE)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def system() -> None:
    assert answer(SYSTEM, USER).content


def turns() -> None:
    assert answer(USER, answer(), USER).content is not None


def json() -> None:
    Opinion.model_validate_json(answer(response_format=Opinion).content)


def tools() -> None:
    called = answer(model=TOOL_MODEL, tools=[WEATHER], tool_choice="required")
    [call] = called.tool_calls
    assert call.function.name == "weather"
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    assert answer(USER, called, result, model=TOOL_MODEL, tools=[WEATHER], tool_choice="none").tool_calls is None


def profile() -> None:
    assert answer(model=PROFILE, temperature=0, max_tokens=SHORT).content == expected(model=PROFILE)


def attributes() -> None:
    assert answer(attributes=DIALS, temperature=0, max_tokens=SHORT).content == at_dials()


def measured() -> None:
    reply = litellm.completion(f"openai/{MODEL}", [USER], score=True, **HERE)
    assert reply.steering["measured"]


def logprobs() -> None:
    reply = litellm.completion(f"openai/{MODEL}", [USER], logprobs=True, top_logprobs=2, **HERE)
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2


def completions() -> None:
    reply = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Owls are", **HERE)
    assert reply.choices[0].text


def responses() -> None:
    reply = litellm.responses(model=f"openai/{MODEL}", input=TEXT, **HERE)
    assert reply.output[0].content[0].text


def anthropic() -> None:
    """Anthropic's shape, which LiteLLM makes into a request of OpenAI's."""
    asked = litellm.anthropic.messages.acreate(model=f"openai/{MODEL}", messages=[USER], max_tokens=1024, **HERE)
    assert asyncio.run(asked)["content"][0]["text"]


def errors() -> str:
    return refusal(litellm.BadRequestError, lambda: answer(attributes={"humour": 4}), "humour")


run(
    *(chat, stream, system, turns, json, tools, profile, attributes, measured, logprobs, completions, responses),
    *(anthropic, errors),
)
