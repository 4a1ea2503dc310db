"""LlamaIndex's `OpenAILike`."""

from typing import Literal

import openai
from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, TEXT, TOOL_MODEL, at_dials, expected, refusal, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Opinion(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def llm(model: str = MODEL, chats: bool = True, **more: object) -> OpenAILike:
    return OpenAILike(model=model, api_base=BASE, api_key=KEY, is_chat_model=chats, **more)


def chat() -> None:
    assert llm().chat([ChatMessage(TEXT)]).message.content
    assert llm().complete(TEXT).text


def stream() -> None:
    assert "".join(piece.delta or "" for piece in llm().stream_chat([ChatMessage(TEXT)]))


def system() -> None:
    assert llm().chat([ChatMessage("Be brief.", role="system"), ChatMessage(TEXT)]).message.content


def turns() -> None:
    first = llm().chat([ChatMessage(TEXT)]).message
    assert llm().chat([ChatMessage(TEXT), first, ChatMessage(TEXT)]).message.role == "assistant"


def json() -> None:
    model = llm(should_use_structured_outputs=True)
    assert isinstance(model.as_structured_llm(Opinion).complete(TEXT).raw, Opinion)


def tools() -> None:
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city."""
        return f"Rain in {city}."

    model = llm(TOOL_MODEL, is_function_calling_model=True)
    called = model.chat_with_tools([FunctionTool.from_defaults(weather)], TEXT, tool_required=True)
    [call] = model.get_tool_calls_from_response(called)
    assert call.tool_name == "weather"
    assert isinstance(model.as_structured_llm(Opinion).complete(TEXT).raw, Opinion)


def profile() -> None:
    answer = llm(PROFILE, temperature=0, max_tokens=SHORT).chat([ChatMessage(TEXT)]).message.content
    assert answer == expected(model=PROFILE)


def attributes() -> None:
    header = {"X-SteerLM-Attributes": ",".join(f"{name}={value}" for name, value in DIALS.items())}
    by_header = llm(temperature=0, max_tokens=SHORT, default_headers=header)
    by_body = llm(temperature=0, max_tokens=SHORT, additional_kwargs={"extra_body": {"attributes": DIALS}})
    for model in (by_header, by_body):
        assert model.chat([ChatMessage(TEXT)]).message.content == at_dials()


def measured() -> None:
    model = llm(additional_kwargs={"extra_body": {"score": True}})
    assert model.chat([ChatMessage(TEXT)]).raw.steering["measured"]


def logprobs() -> None:
    assert llm(logprobs=True, top_logprobs=2).chat([ChatMessage(TEXT)]).logprobs


def completions() -> None:
    """What it does by default: `is_chat_model` is off."""
    assert llm(chats=False).complete("Owls are").text
    assert "".join(piece.delta or "" for piece in llm(chats=False).stream_complete("Owls are"))


def errors() -> str:
    model = llm(additional_kwargs={"extra_body": {"attributes": {"humour": 4}}})
    return refusal(openai.BadRequestError, lambda: model.chat([ChatMessage(TEXT)]), "humour")


run(
    *(chat, stream, system, turns, json, tools, profile, attributes, measured, logprobs, completions, errors),
)
