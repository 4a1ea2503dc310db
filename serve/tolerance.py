"""Parameters of other servers that we do not have: which ask for nothing, which are hints, and which are refused.

A parameter at its neutral value asks for nothing. A hint asks for something that changes no answer. Anything else would
change the answer, so it is refused by name. Knows none of our own parameters and no JSON.
"""

from collections.abc import Mapping
from typing import Any

from serve.protocol import ProtocolError

EMPTY: tuple[object, ...] = (False, "", [], {})
"""Neutral, beside null, wherever the table below has nothing else: false, and what is empty."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("repeat_penalty", "length_penalty", "typical_p"), (1,)),
    **dict.fromkeys(("min_tokens", "top_a", "xtc_probability", "mirostat"), (0,)),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "add_generation_prompt"), (True,)),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "num_beams": (1,),
    "tfs": (1,),
}
"""Parameter -> its neutral values, where they are others than the empty ones."""

UNSUPPORTED = (
    *("allowed_token_ids", "audio", "bad_words", "chat_template", "chat_template_kwargs", "continue_final_message"),
    *("documents", "echo", "functions", "guided_choice", "guided_grammar", "guided_json", "guided_regex"),
    *("include_stop_str_in_output", "moderation", "prompt_logprobs", "return_token_ids"),
    *("stop_token_ids", "structured_outputs", "truncate_prompt_tokens", "use_beam_search"),
    *("suffix", "web_search_options"),
)
"""Known parameters without an entry above. A name that is nowhere is refused as a mistake in writing."""

HINTS = frozenset(
    {
        *("cache_salt", "include_reasoning", "metadata", "parallel_tool_calls", "prediction", "priority"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "request_id", "safety_identifier"),
        *("service_tier", "store", "usage"),
    }
)
"""Parameters that change where or how fast an answer is made, or what is kept of it."""

MESSAGE_UNSUPPORTED = ("audio", "function_call")
"""In a message. Clients send an earlier reply back as it came, so all else that it may hold is a hint."""


def asks_for_nothing(name: str, value: object) -> bool:
    """Is `value` the neutral one of a parameter that we do not have?

    >>> asks_for_nothing("repetition_penalty", 1.0), asks_for_nothing("min_p", 0.1), asks_for_nothing("tools", [])
    (True, False, True)
    """
    if value is None:
        return True
    neutral = NEUTRAL.get(name, EMPTY)
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral)


def is_known(name: str) -> bool:
    """Is it a parameter of another server that we do not have and that would change an answer?"""
    return name in NEUTRAL or name in UNSUPPORTED


def unsupported(where: str, why: str = "is not supported here: leave it out") -> ProtocolError:
    """The refusal of the parameter at `where`."""
    return ProtocolError(f"{where} {why}", where, "unsupported_parameter")


def unused_functions(raw: Mapping[str, Any], may_ignore: bool) -> tuple[str, ...]:
    """`functions`, OpenAI's older word for tools, which nothing here calls, if the model was free not to.

    Raises ProtocolError where it has to call one, or where the endpoint refuses tools that it cannot use.
    """
    functions, choice = raw.get("functions"), raw.get("function_call")
    if not isinstance(functions, list | None):
        raise unsupported("functions", "is no list: leave it out")
    if not asks_for_nothing("function_call", choice):
        raise unsupported("function_call", "asks for a call by the older name: send tools and tool_choice")
    if not functions:
        return ()
    if choice != "none" and not may_ignore:
        raise unsupported("functions", "is the older name of tools, and ignore_tools is off: send tools")
    return ("functions",)
