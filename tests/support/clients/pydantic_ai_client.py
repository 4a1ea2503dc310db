"""Pydantic AI's agents, over the chat route and the responses route."""

import asyncio
from typing import Any, Literal

from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, TEXT, TOOL_MODEL, at_dials, expected, refusal, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Opinion(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def agent(model: str = MODEL, kind: Any = OpenAIChatModel, **more: Any) -> Agent[None, Any]:
    return Agent(kind(model, provider=OpenAIProvider(base_url=BASE, api_key=KEY)), **more)


def chat() -> None:
    assert agent().run_sync(TEXT).output


def stream() -> None:
    async def streamed() -> str:
        async with agent().run_stream(TEXT) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    assert asyncio.run(streamed())


def system() -> None:
    both = agent(instructions="Answer in one sentence.", system_prompt="You know birds.")
    assert both.run_sync(TEXT).output


def turns() -> None:
    first = agent().run_sync(TEXT)
    assert agent().run_sync(TEXT, message_history=first.all_messages()).output


def json() -> None:
    assert isinstance(agent(output_type=NativeOutput(Opinion)).run_sync(TEXT).output, Opinion)


def tools() -> None:
    """An output type is a tool that must be called, by default."""
    assert isinstance(agent(TOOL_MODEL, output_type=Opinion).run_sync(TEXT).output, Opinion)
    bird = agent(TOOL_MODEL)

    @bird.tool_plain
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city."""
        return f"Rain in {city}."

    assert bird.run_sync(TEXT).output is not None


def profile() -> None:
    settings = {"temperature": 0, "max_tokens": SHORT}
    assert agent(PROFILE, model_settings=settings).run_sync(TEXT).output == expected(model=PROFILE)


def attributes() -> None:
    settings = {"temperature": 0, "max_tokens": SHORT, "extra_body": {"attributes": DIALS}}
    assert agent(model_settings=settings).run_sync(TEXT).output == at_dials()


def responses() -> None:
    assert agent(kind=OpenAIResponsesModel).run_sync(TEXT).output


def errors() -> str:
    wrong = agent(model_settings={"extra_body": {"attributes": {"humour": 4}}})
    return refusal(ModelHTTPError, lambda: wrong.run_sync(TEXT), "humour")


run(
    *(chat, stream, system, turns, json, tools, profile, attributes, responses, errors),
)
