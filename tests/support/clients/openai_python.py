"""The `openai` package for Python."""

import asyncio
from typing import Literal

import openai
from harness import BASE, DIALS, KEY, MODEL, PROFILE, SHORT, SYSTEM, TOOL_MODEL, USER, at_dials, refusal, run
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE, api_key=KEY)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}},
        },
    }
]


class Opinion(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def chat() -> None:
    assert client.chat.completions.create(model=MODEL, messages=[USER]).choices[0].message.content

    async def asked() -> str | None:
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY) as own:
            return (await own.chat.completions.create(model=MODEL, messages=[USER], n=2)).choices[1].message.content

    assert asyncio.run(asked())


def stream() -> None:
    with client.chat.completions.stream(model=MODEL, messages=[USER]) as events:
        for event in events:
            if event.type == "chunk":
                assert event.chunk.choices
        assert events.get_final_completion().choices[0].message.content
    chunks = client.chat.completions.create(
        model=MODEL, messages=[USER], stream=True, stream_options={"include_usage": True}
    )
    assert [chunk.usage for chunk in chunks][-1]


def system() -> None:
    assert client.chat.completions.create(model=MODEL, messages=[SYSTEM, USER, SYSTEM]).choices[0].message.content


def turns() -> None:
    first = client.chat.completions.create(model=MODEL, messages=[USER], max_tokens=SHORT).choices[0].message
    assert client.chat.completions.create(model=MODEL, messages=[USER, first, USER]).choices[0].message


def json() -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=[USER], response_format=Opinion)
    assert isinstance(parsed.choices[0].message.parsed, Opinion)


def tools() -> None:
    called = client.chat.completions.create(model=TOOL_MODEL, messages=[USER], tools=TOOLS, tool_choice="required")
    [call] = called.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert called.choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    messages = [USER, called.choices[0].message, result]
    after = client.chat.completions.create(model=TOOL_MODEL, messages=messages, tools=TOOLS, tool_choice="none")
    assert after.choices[0].message.tool_calls is None
    with client.chat.completions.stream(
        model=TOOL_MODEL,
        messages=[USER],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "weather"}},
    ) as events:
        [streamed] = events.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.name == "weather"


def profile() -> None:
    steering = client.chat.completions.create(model=PROFILE, messages=[USER]).model_extra["steering"]
    plain = client.chat.completions.create(model=MODEL, messages=[USER]).model_extra["steering"]
    assert steering["effective"] != plain["effective"]


def attributes() -> None:
    asked = {"model": MODEL, "messages": [USER], "temperature": 0, "max_tokens": SHORT}
    answer = client.chat.completions.create(**asked, extra_body={"attributes": DIALS})
    assert answer.choices[0].message.content == at_dials()
    header = {"X-SteerLM-Attributes": ",".join(f"{name}={value}" for name, value in DIALS.items())}
    assert client.chat.completions.create(**asked, extra_headers=header).choices[0].message.content == at_dials()


def measured() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[USER], extra_body={"score": True})
    assert answer.model_extra["steering"]["measured"]


def logprobs() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[USER], logprobs=True, top_logprobs=2)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def models() -> None:
    names = [model.id for model in client.models.list()]
    assert client.models.retrieve(PROFILE).id in names


def completions() -> None:
    assert client.completions.create(model=MODEL, prompt="Owls are").choices[0].text


def responses() -> None:
    assert client.responses.create(model=MODEL, input="Tell me about owls.").output_text
    parsed = client.responses.parse(model=MODEL, input="Tell me about owls.", text_format=Opinion)
    assert isinstance(parsed.output_parsed, Opinion)


def errors() -> str:
    wrong = {"attributes": {"humour": 4}}
    call = lambda: client.chat.completions.create(model=MODEL, messages=[USER], extra_body=wrong)  # noqa: E731
    return refusal(openai.BadRequestError, call, "humour")


run(
    *(chat, stream, system, turns, json, tools, profile, attributes, measured, logprobs, models, completions),
    *(responses, errors),
)
