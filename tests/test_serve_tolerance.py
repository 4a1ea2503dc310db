"""Parameters of other servers: what asks for nothing is accepted, hints are reported, the rest is refused by name."""

import json
from typing import Any

import pytest
from support.chat_requests import USER, problem, request

from serve.parser import parse
from serve.protocol import ProtocolError
from serve.tolerance import NEUTRAL, UNSUPPORTED


def unused(**fields: Any) -> set[str]:
    return set(parse(json.dumps({"messages": [USER], **fields}).encode()).unused)


@pytest.mark.parametrize("field", [*NEUTRAL, *UNSUPPORTED])
def test_what_would_change_the_answer_and_is_not_here_is_refused_by_name(field: str) -> None:
    wrong = problem(**{field: {"some": "thing"}})
    assert (wrong.param, wrong.code) == (field, "unsupported_parameter")


@pytest.mark.case("a parameter at its neutral value")
@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"}},
        {"repetition_penalty": 1, "min_p": 0.0, "ignore_eos": False, "skip_special_tokens": True},
        {"tool_choice": "auto", "function_call": "none", "logit_bias": {}, "modalities": ["text"]},
        {"store": None, "a_parameter_of_tomorrow": False, "another": [], "third": None},
    ],
)
def test_asking_for_nothing_is_no_mistake(fields: dict[str, Any]) -> None:
    assert request(**fields) == request()
    assert unused(**fields) == set()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"presence_penalty": False}, "presence_penalty"),
        ({"length_penalty": 0.1}, "length_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"a_parameter_of_tomorrow": 0}, "a_parameter_of_tomorrow"),
        ({"attribute": {}}, "attribute"),
        ({"scores": False}, "scores"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_is_not_neutral_is_refused_and_so_is_one_of_our_names_written_wrong(
    fields: dict[str, Any], param: str
) -> None:
    assert problem(**fields).param == param


@pytest.mark.case("hints of clients that run as they come")
def test_what_changes_no_answer_is_taken_and_reported() -> None:
    hints = {
        "store": True,
        "metadata": {"run": "7"},
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "service_tier": "flex",
        "prediction": {"type": "content", "content": "x"},
    }
    assert request(**hints) == request()
    assert unused(**hints) == set(hints)
    marked = {"type": "text", "text": USER["content"], "cache_control": {"type": "ephemeral"}}
    noted = [{**USER, "name": "me", "id": "1", "content": [marked]}]
    assert request(messages=noted) == request()
    assert unused(messages=noted) == {"messages[].name", "messages[].id", "messages[].content[].cache_control"}
    answer = {"role": "assistant", "content": "So.", "reasoning": "Hm.", "refusal": None, "annotations": []}
    assert unused(messages=[USER, answer, USER]) == {"messages[].reasoning"}


@pytest.mark.case("26-openai-clients")
def test_stream_options_of_newer_clients_are_hints() -> None:
    plain = request(stream=True, stream_options={"include_usage": True})
    newer = {"include_usage": True, "include_obfuscation": True, "continuous_usage_stats": True}
    assert request(stream=True, stream_options=newer) == plain
    assert unused(stream=True, stream_options=newer) == {
        "stream_options.include_obfuscation",
        "stream_options.continuous_usage_stats",
    }


def test_functions_by_their_older_name_are_never_called() -> None:
    assert unused(functions=[{"name": "f"}], function_call="auto") == {"functions"}
    assert problem(functions=[{"name": "f"}], function_call={"name": "f"}).param == "function_call"
    with pytest.raises(ProtocolError, match="ignore_tools is off"):
        parse(json.dumps({"messages": [USER], "functions": [{}]}).encode(), ignore_tools=False)
