"""LangChain's `ChatOpenAI` and `OpenAI`."""

import asyncio
from typing import Literal

import openai
from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, TEXT, TOOL_MODEL, at_dials, expected, refusal, run
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Opinion(BaseModel):
    """What somebody thinks."""

    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def chat_model(model: str = MODEL, **more: object) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=BASE, api_key=KEY, **more)


def chat() -> None:
    assert chat_model().invoke(TEXT).content
    assert asyncio.run(chat_model().ainvoke(TEXT)).content
    assert all(answer.content for answer in chat_model().batch([TEXT, "Tell me about bees."]))


def stream() -> None:
    assert "".join(chunk.content for chunk in chat_model().stream(TEXT))


def system() -> None:
    assert chat_model().invoke([SystemMessage("Answer in one sentence."), HumanMessage(TEXT)]).content


def turns() -> None:
    first = chat_model().invoke(TEXT)
    greeting = AIMessage("Hello.")
    assert (
        chat_model().invoke([greeting, HumanMessage(TEXT, name="Ann"), first, HumanMessage(TEXT)] * 2).content
        is not None
    )


def json() -> None:
    for method in ("json_schema", "json_mode"):
        found = chat_model().with_structured_output(Opinion if method == "json_schema" else None, method=method)
        assert found.invoke(TEXT) is not None


def tools() -> None:
    @tool
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city."""
        return f"Rain in {city}."

    called = chat_model(TOOL_MODEL).bind_tools([weather], tool_choice="any").invoke(TEXT)
    [call] = called.tool_calls
    result = weather.invoke(call)
    assert chat_model(TOOL_MODEL).bind_tools([weather]).invoke([HumanMessage(TEXT), called, result]) is not None
    by_tool = chat_model(TOOL_MODEL).with_structured_output(Opinion, method="function_calling")
    assert isinstance(by_tool.invoke(TEXT), Opinion)


def profile() -> None:
    assert chat_model(PROFILE, temperature=0, max_tokens=SHORT).invoke(TEXT).content == expected(model=PROFILE)


def attributes() -> None:
    model = chat_model(temperature=0, max_tokens=SHORT, extra_body={"attributes": DIALS})
    assert model.invoke(TEXT).content == at_dials()
    header = {"X-SteerLM-Attributes": ",".join(f"{name}={value}" for name, value in DIALS.items())}
    model = chat_model(temperature=0, max_tokens=SHORT, default_headers=header)
    assert model.invoke(TEXT).content == at_dials()


def logprobs() -> None:
    assert chat_model(logprobs=True).invoke(TEXT).response_metadata["logprobs"]["content"]


def completions() -> None:
    assert OpenAI(model=MODEL, base_url=BASE, api_key=KEY).invoke("Owls are")


def responses() -> None:
    assert chat_model(use_responses_api=True).invoke(TEXT).text
    assert "".join(chunk.text for chunk in chat_model(use_responses_api=True).stream(TEXT))


def errors() -> str:
    model = chat_model(extra_body={"attributes": {"humour": 4}})
    return refusal(openai.BadRequestError, lambda: model.invoke(TEXT), "humour")


run(
    *(chat, stream, system, turns, json, tools, profile, attributes, logprobs, completions, responses, errors),
)
