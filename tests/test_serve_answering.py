"""Several answers to one request: side by side, rated, the nearest chosen."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from support.asgi import POLICY_INFO, USER, Counting, app_around, ask, refused

from data.calibration import Calibration
from data.text_rater import TextRater
from serve.models import ServedPolicies, ServedPolicy
from serve.protocol import ProtocolError
from serve.request import Delta, Event, Failed, GenerationRequest


async def by_length(request: GenerationRequest, answer: str) -> dict[str, float]:
    """A predictor that finds an answer as humorous as it is long."""
    return {"humor": float(len(answer))}


def test_n_answers_are_those_of_the_seeds_that_follow() -> None:
    script = Counting()
    answered = ask(app_around(script.generate, by_length), messages=[USER], n=3, seed=0, score=True)
    assert [(c["index"], c["message"]["content"], c["measured"]) for c in answered.json["choices"]] == [
        (0, "x", {"humor": 1.0}),
        (1, "xx", {"humor": 2.0}),
        (2, "xxx", {"humor": 3.0}),
    ]
    assert answered.json["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert [request.sampling.seed for request in script.requests] == [0, 1, 2]
    assert script.num_closed == 3


def test_measured_values_are_on_the_scale_of_the_policys_labels() -> None:
    by_rank = Calibration(points={"humor": ((1.0, 0.0), (3.0, 4.0))})
    info = replace(POLICY_INFO, calibration_json=by_rank.model_dump_json())
    app = app_around(Counting().generate, by_length, models=ServedPolicies([ServedPolicy(info)]))
    answered = ask(app, messages=[USER], attributes={"humor": 2}, best_of=3, seed=0).json
    assert [c["measured"]["humor"] for c in answered["steering"]["candidates"]] == [0.0, 2.0, 4.0]
    assert [c["chosen"] for c in answered["steering"]["candidates"]] == [False, True, False]


def test_labels_that_were_measures_of_the_text_are_measured_in_answers() -> None:
    """The predictor has a head for them, too, which was never trained."""
    rater = TextRater(measures={"humor": "characters"}, scale=Calibration(points={"humor": ((1.0, 0.0), (3.0, 4.0))}))

    async def untrained(request: GenerationRequest, answer: str) -> dict[str, float]:
        return {"humor": 99.0, "toxicity": 1.5}

    info = replace(POLICY_INFO, text_rater_json=rater.model_dump_json())
    app = app_around(Counting().generate, untrained, models=ServedPolicies([ServedPolicy(info)]))
    answered = ask(app, messages=[USER], n=3, seed=0, score=True).json
    assert [c["measured"] for c in answered["choices"]] == [
        {"humor": 0.0, "toxicity": 1.5},
        {"humor": 2.0, "toxicity": 1.5},
        {"humor": 4.0, "toxicity": 1.5},
    ]


def test_an_attribute_that_others_rated_has_no_measured_value() -> None:
    """They are not at hand, and the predictor never learned what they meant."""
    info = replace(POLICY_INFO, text_rater_json=TextRater(elsewhere={"humor": "judge: strict"}).model_dump_json())

    async def scored(request: GenerationRequest, answer: str) -> dict[str, float]:
        return {"humor": 3.0, "toxicity": 1.5}

    app = app_around(Counting().generate, scored, models=ServedPolicies([ServedPolicy(info)]))
    answered = ask(app, messages=[USER], seed=0, score=True).json
    assert answered["choices"][0]["measured"] == {"toxicity": 1.5}


def test_n_answers_stream_side_by_side_and_the_measure_comes_last() -> None:
    *chunks, done = ask(
        app_around(Counting().generate, by_length),
        messages=[USER],
        n=3,
        seed=0,
        score=True,
        stream=True,
        stream_options={"include_usage": True},
    ).chunks
    assert done == "data: [DONE]"
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["x", "xx", "xxx"]
    assert sorted(c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]) == [0, 1, 2]
    assert chunks[-2]["steering"]["measured"] == {"humor": 1.0}
    assert (chunks[-2]["choices"][0]["index"], chunks[-2]["choices"][0]["finish_reason"]) == (0, "stop")
    assert chunks[-1]["usage"]["completion_tokens"] == 6


@pytest.mark.case("the loop of every textbook")
def test_every_chunk_of_a_rated_stream_has_a_choice() -> None:
    *chunks, _ = ask(
        app_around(Counting().generate, by_length), messages=[USER], seed=0, score=True, stream=True
    ).chunks
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "x"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]


@pytest.mark.case("OpenAI's own stream helper")
def test_the_client_s_stream_helper_keeps_what_was_measured() -> None:
    *chunks, _ = ask(
        app_around(Counting().generate, by_length), messages=[USER], seed=0, score=True, stream=True
    ).chunks
    state = ChatCompletionStreamState()
    for chunk in chunks:
        list(state.handle_chunk(ChatCompletionChunk.model_validate(chunk)))
    whole = state.get_final_completion()
    message = whole.choices[0].message.model_extra
    assert message is not None
    assert message["steering"]["measured"] == {"humor": 1.0}
    assert message["steering"]["effective"] == whole.model_extra["steering"]["effective"]  # type: ignore[index]
    assert whole.choices[0].message.content == "x"


def test_best_of_returns_the_nearest_with_all_distances() -> None:
    answered = ask(
        app_around(Counting().generate, by_length), messages=[USER], attributes={"humor": 3}, best_of=4, seed=0
    )
    [choice] = answered.json["choices"]
    assert choice["message"]["content"] == "xxx"
    candidates = answered.json["steering"]["candidates"]
    assert [c["distance"] for c in candidates] == [0.5, 0.25, 0.0, 0.25]
    assert [c["chosen"] for c in candidates] == [False, False, True, False]
    assert answered.json["steering"]["measured"] == {"humor": 3.0}
    assert answered.json["usage"]["completion_tokens"] == 10
    assert "early_stop" not in answered.json["steering"]


class Stalling(Counting):
    """A generation that would write more than two letters never ends."""

    async def generate(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for event in super().generate(model, request):
            if isinstance(event, Delta) and event.completion_tokens > 2:
                await asyncio.sleep(3600)
            yield event


@pytest.mark.parametrize("rating_s", [0.0, 0.05])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_the_first_that_is_near_enough_ends_the_others(path: str, rating_s: float) -> None:
    async def rated(request: GenerationRequest, answer: str) -> dict[str, float]:
        await asyncio.sleep(rating_s * (len(answer) - 1))
        return await by_length(request, answer)

    script = Stalling()
    asked = {"messages": [USER]} if path.endswith("completions") else {"input": "Why?"}
    wanted = {"attributes": {"humor": 3}, "best_of": 4, "target_distance": 0.25, "seed": 0}
    answered = ask(app_around(script.generate, rated), path=path, **asked, **wanted)
    steering = answered.json["steering"]
    assert steering["early_stop"] == {"written": 2, "distance": 0.25, "stopped": True}
    assert [(c["distance"], c["chosen"]) for c in steering["candidates"]] == [(0.5, False), (0.25, True)]
    assert steering["measured"] == {"humor": 2.0}
    usage = answered.json["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 1 + 2 + 2 + 2, "what was written counts"
    assert script.num_closed == 4


def test_if_none_is_near_enough_all_are_written_and_the_nearest_is_chosen() -> None:
    app = app_around(Counting().generate, by_length)
    answered = ask(app, messages=[USER], attributes={"humor": 4}, best_of=3, target_distance=0, seed=0).json
    assert answered["choices"][0]["message"]["content"] == "xxx"
    assert answered["steering"]["early_stop"] == {"written": 3, "distance": 0.25, "stopped": False}
    assert [c["distance"] for c in answered["steering"]["candidates"]] == [0.75, 0.5, 0.25]
    assert answered["usage"]["completion_tokens"] == 6


def test_a_failure_before_one_is_near_enough_is_an_error_and_ends_all() -> None:
    script = Stalling()

    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for event in script.generate(model, request):
            yield Failed("lost", 503) if isinstance(event, Delta) and request.sampling.seed == 1 else event

    async def broken(request: GenerationRequest, answer: str) -> dict[str, float]:
        raise ProtocolError("the attribute predictor failed", code="scorer_failed", status=503)

    fields: dict[str, Any] = {"messages": [USER], "best_of": 2, "target_distance": 0, "seed": 0}
    assert ask(app_around(generate, by_length), **fields).status == 503
    assert script.num_closed == 2
    assert ask(app_around(Counting().generate, broken), **fields).json["error"]["code"] == "scorer_failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 1}, "best_of"),
        ({"target_distance": 0.5}, "target_distance"),
        ({"best_of": 2, "target_distance": 1.5}, "target_distance"),
        ({"best_of": 2, "target_distance": -0.1}, "target_distance"),
        ({"best_of": 2, "target_distance": "near"}, "target_distance"),
        ({"n": 9}, "n"),
        ({"score": 1}, "score"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(fields: dict[str, Any], param: str) -> None:
    answered = ask(app_around(Counting().generate, by_length), messages=[USER], **fields)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)


def test_without_a_predictor_nothing_can_be_measured() -> None:
    for fields in ({"score": True}, {"best_of": 2}):
        assert "needs an attribute predictor" in refused(**fields)["message"]


def test_a_predictor_that_fails_is_an_error() -> None:
    async def broken(request: GenerationRequest, answer: str) -> dict[str, float]:
        raise ProtocolError("the attribute predictor failed", code="scorer_failed", status=503)

    app = app_around(Counting().generate, broken)
    assert ask(app, messages=[USER], score=True).status == 503
    assert ask(app, messages=[USER], score=True, stream=True).chunks[-1]["error"]["code"] == "scorer_failed"


def test_one_of_n_that_fails_ends_them_all() -> None:
    script = Counting()

    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        if request.sampling.seed == 1:
            yield Failed("busy", 429, retry_after_s=3)
            return
        async for event in script.generate(model, request):
            yield event

    assert ask(app_around(generate), messages=[USER], n=3, seed=0).status == 429
    assert script.num_closed == 2
