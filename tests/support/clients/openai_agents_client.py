"""The OpenAI Agents SDK, over the responses route, which is its default, and over the chat route."""

import asyncio
from typing import Any, Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, TEXT, TOOL_MODEL, refusal, run
from pydantic import BaseModel

client = openai.AsyncOpenAI(base_url=BASE, api_key=KEY)
set_default_openai_client(client)
set_tracing_disabled(True)  # else it sends every conversation to OpenAI


class Opinion(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


@function_tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city."""
    return f"Rain in {city}."


def agent(model: str = MODEL, chats: bool = True, **more: Any) -> Agent[Any]:
    """`chats`: over the chat route."""
    return Agent(name="Ann", model=OpenAIChatCompletionsModel(model, client) if chats else model, **more)


def chat() -> None:
    assert Runner.run_sync(agent(), TEXT).final_output


def stream() -> None:
    async def streamed() -> list[str]:
        result = Runner.run_streamed(agent(), TEXT)
        return [event.type async for event in result.stream_events()]

    # In the loop that the others run in: a client's connections belong to one.
    assert "raw_response_event" in asyncio.get_event_loop().run_until_complete(streamed())


def system() -> None:
    assert Runner.run_sync(agent(instructions="Answer in one sentence."), TEXT).final_output


def turns() -> None:
    first = Runner.run_sync(agent(), TEXT)
    assert Runner.run_sync(agent(), [*first.to_input_list(), {"role": "user", "content": TEXT}]).final_output


def json() -> None:
    assert isinstance(Runner.run_sync(agent(output_type=Opinion), TEXT).final_output, Opinion)


def tools() -> None:
    """Over both routes."""
    for chats in (True, False):
        calling = agent(
            TOOL_MODEL,
            chats,
            tools=[weather],
            model_settings=ModelSettings(tool_choice="required"),
            tool_use_behavior="stop_on_first_tool",
        )
        assert Runner.run_sync(calling, TEXT).final_output.startswith("Rain in ")
        assert Runner.run_sync(agent(TOOL_MODEL, chats, tools=[weather]), TEXT).final_output is not None


def profile() -> None:
    assert Runner.run_sync(agent(PROFILE), TEXT).final_output


def attributes() -> None:
    dials = ModelSettings(max_tokens=SHORT, extra_body={"attributes": DIALS})
    assert Runner.run_sync(agent(model_settings=dials), TEXT).final_output


def responses() -> None:
    assert Runner.run_sync(agent(chats=False), TEXT).final_output


def errors() -> str:
    wrong = agent(model_settings=ModelSettings(extra_body={"attributes": {"humour": 4}}))
    return refusal(openai.BadRequestError, lambda: Runner.run_sync(wrong, TEXT), "humour")


run(
    *(chat, stream, system, turns, json, tools, profile, attributes, responses, errors),
)
