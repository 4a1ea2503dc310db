import json
from typing import Any

import pytest

from serve.completion_reply import CompletionReply
from serve.completion_request import MAX_PROMPTS, prompts_of
from serve.logprobs import ReportedToken
from serve.protocol import ProtocolError
from serve.reply import FinishedAnswer, Usage
from serve.request import Echo

USAGE = Usage(prompt_tokens=2, completion_tokens=1, total_tokens=3)


def _token(text: str, logprob: float | None = -1.0, **top: float) -> ReportedToken:
    return ReportedToken(text, text, logprob, tuple(top.items()))


def test_a_prompt_is_text_or_ids_one_or_several() -> None:
    assert prompts_of("") == [""]
    assert prompts_of("a") == ["a"]
    assert prompts_of(["a", "b"]) == ["a", "b"]
    assert prompts_of([1, 2]) == [(1, 2)]
    assert prompts_of([[1, 2], [3]]) == [(1, 2), (3,)]


@pytest.mark.parametrize(
    ("prompt", "where", "what"),
    [
        (None, "prompt", "prompt is missing"),
        ([], "prompt", "prompt is an empty list"),
        ({}, "prompt", "prompt is an object"),
        (7, "prompt", "prompt is a number"),
        ([1, True], "prompt[1]", r"prompt\[1\] is true or false"),
        (["a", 1], "prompt[1]", r"prompt\[1\] is a number"),
        (["a", [1]], "prompt[1]", r"prompt\[1\] is a list of 1"),
        ([[1], []], "prompt[1]", r"prompt\[1\] is an empty list"),
        ([[1, "a"]], "prompt[0]", r"prompt\[0\] is a list of 2"),
        ([[1.0]], "prompt[0]", r"prompt\[0\] is a list of 1"),
        (["a"] * (MAX_PROMPTS + 1), "prompt", "prompt has 65 texts: at most 64 are allowed"),
    ],
)
def test_what_is_no_prompt_is_named(prompt: Any, where: str, what: str) -> None:
    with pytest.raises(ProtocolError, match=what) as caught:
        prompts_of(prompt)
    assert caught.value.param == where


def test_an_echoed_prompt_and_its_answer_are_one_text_with_one_list_of_tokens() -> None:
    """What lm-eval sums: the prompt's tokens but the first, and one generated token at the end."""
    echo = Echo("The sea", (_token("The", None), _token(" sea", -2.0, a=-0.5)))
    end = ReportedToken("<end>", "", -0.1, (("<end>", -0.1),))
    answer = FinishedAnswer("", "stop", tokens=(end,), echo=echo)
    reply = CompletionReply("demo", num_top=1).whole([answer], USAGE)
    body = json.loads(reply.model_dump_json())
    assert (body["object"], body["model"], body["usage"]["total_tokens"]) == ("text_completion", "demo", 3)
    [choice] = body["choices"]
    assert choice["text"] == "The sea"
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] == {
        "tokens": ["The", " sea", "<end>"],
        "token_logprobs": [None, -2.0, -0.1],
        "top_logprobs": [None, {"a": -0.5, " sea": -2.0}, {"<end>": -0.1}],
        "text_offset": [0, 3, 7],
    }
    found, context = choice["logprobs"], 1
    assert sum(found["token_logprobs"][context:-1]) == -2.0
    greedy = zip(found["token_logprobs"][context:-1], found["top_logprobs"][context:-1], strict=True)
    assert not all(own == max(top.values()) for own, top in greedy)


def test_without_logprobs_none_are_sent() -> None:
    reply = CompletionReply("demo").whole([FinishedAnswer("a", "length"), FinishedAnswer("b", "stop")], USAGE)
    assert [(choice.index, choice.text, choice.logprobs) for choice in reply.choices] == [
        (0, "a", None),
        (1, "b", None),
    ]


def test_chunks_add_up_to_the_whole() -> None:
    tokens = [_token("The", None), _token(" sea"), _token(" is", -0.5, x=-0.1)]
    reply = CompletionReply("demo", num_top=2)
    chunks = [
        *reply.pieces(0, "The sea", tokens[:2]),
        *reply.pieces(1, "other", [_token("other")]),
        *reply.pieces(0, " is", tokens[2:]),
        *reply.closing(0, "length"),
        *reply.counts(USAGE),
    ]
    assert len({chunk.id for chunk in chunks}) == 1
    assert "usage" not in json.loads(chunks[0].model_dump_json())
    whole = CompletionReply("demo", num_top=2).whole(
        [FinishedAnswer(" is", "length", tokens=tokens[2:], echo=Echo("The sea", tuple(tokens[:2])))], USAGE
    )
    own = [choice for chunk in chunks for choice in chunk.choices if choice.index == 0]
    assert "".join(choice.text for choice in own) == whole.choices[0].text
    assert own[-1].finish_reason == "length"
    assert whole.choices[0].logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for choice in own for value in getattr(choice.logprobs, name)]
        assert joined == getattr(whole.choices[0].logprobs, name)
