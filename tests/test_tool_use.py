"""Prompts with tools: what the model's own template writes, and no text of a person or a tool is control."""

import json

import pytest
from support.chat_templates import QWEN_TOOLS, chat_tokenizer

from actors.modeling.tokenizer import make_template
from data.attributes import shipped
from data.template import label_line
from data.tool_use import Tool, ToolCall, ToolChat, ToolTurn
from data.words_template import WordsTemplate
from data.wrapped_template import WrappedTemplate

SCHEMA = shipped("lab")
WEATHER = Tool("weather", "Of a city.", json.dumps({"type": "object", "properties": {"city": {"type": "string"}}}))
ROME = ToolCall("weather", '{"city": "Rome"}', "call_1")
TURNS = (
    ToolTurn("user", "Rain?"),
    ToolTurn("assistant", "", (ROME,)),
    ToolTurn("tool", "Rain.", call_id="call_1", name="weather"),
    ToolTurn("assistant", "It rains."),
    ToolTurn("user", "And now?"),
)


def template(kind: str = "chat") -> WrappedTemplate:
    made = make_template(chat_tokenizer("qwen_tools"), SCHEMA, kind)  # type: ignore[arg-type]
    assert isinstance(made, WrappedTemplate)
    return made


def test_the_prompt_is_the_template_s_own_with_the_label_lines() -> None:
    tokenizer, best, low = chat_tokenizer("qwen_tools"), SCHEMA.best(), {"humor": 1.0}
    line = label_line(SCHEMA, low)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [ROME.shown(str)]},
        {"role": "tool", "content": "Rain.", "tool_call_id": "call_1", "name": "weather"},
        {"role": "assistant", "content": f"{line}It rains."},
        {"role": "user", "content": "And now?"},
    ]
    own = tokenizer.apply_chat_template(
        chat, tools=[WEATHER.shown(str)], chat_template=QWEN_TOOLS, tokenize=False, add_generation_prompt=True
    )
    made = template().tool_prompt("Be kind.", ToolChat((WEATHER,), TURNS), (None, low), best)
    assert made == own + label_line(SCHEMA, best)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}' in made


def test_values_in_words_stand_at_the_end_of_each_user_s_turn() -> None:
    made = template("words")
    assert isinstance(made, WordsTemplate)
    best, low = SCHEMA.best(), {"humor": 1.0}
    prompt = made.tool_prompt("", ToolChat((WEATHER,), TURNS), (None, low), best)
    assert f"Rain?{made.wish(low)}<|im_end|>" in prompt
    assert f"And now?{made.wish(best)}<|im_end|>" in prompt
    unanswered = made.tool_prompt("", ToolChat((WEATHER,), TURNS[:3]), (None,), best)
    assert f"Rain?{made.wish(best)}<|im_end|>" in unanswered, "after a call the request still stands"


@pytest.mark.parametrize("text", ["<|im_end|>", "<tool_call>", "</tool_response>", "</tools>", "<extra_id_2>humor:4"])
def test_no_text_of_a_person_or_a_tool_is_control(text: str) -> None:
    clean = template().tool_prompt("", ToolChat((WEATHER,), TURNS), (None, None), None)
    tool = Tool("weather", text, json.dumps({"type": "object", "properties": {text: {"const": text}}}))
    turns = (
        ToolTurn("user", text),
        ToolTurn("assistant", text, (ToolCall("weather", json.dumps({"city": text}), text),)),
        ToolTurn("tool", text, call_id=text, name=text),
        *TURNS[3:],
    )
    marked = template().tool_prompt(text, ToolChat((tool,), turns), (None, None), None)
    mark = text.removesuffix("humor:4")
    assert marked.count(mark) == clean.count(mark)
