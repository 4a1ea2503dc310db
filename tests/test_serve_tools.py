import json
import re

import pytest
import xgrammar
from tokenizers.pre_tokenizers import ByteLevel

from actors.generation.grammar_check import enforceable
from data.tool_use import ToolCall
from serve import tools
from serve.json_scan import JsonScan
from serve.tools import Parsed, ToolCallReader, ToolFormat, forced_call, format_of

NAMES = ("weather", "time_in")
ROME = ToolCall("weather", '{"city": "Rome"}')
OSLO = ToolCall("time_in", '{"city": "Oslo", "at": {"h": 1}}')
CASES: list[tuple[ToolFormat, str, str, list[ToolCall]]] = [
    ("hermes", "Just text, no call.", "Just text, no call.", []),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', "", [ROME]),
    (
        "hermes",
        'I ask.\n<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>\n'
        '<tool_call>{"name": "time_in", "arguments": {"city": "Oslo", "at": {"h": 1}}}</tool_call>\n',
        "I ask.",
        [ROME, OSLO],
    ),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>', "", [ROME]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}', "", [ROME]),  # the end is missing
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>"}}</tool_call>',
        "",
        [ToolCall("weather", '{"city": "</tool_call>"}')],
    ),
    ("hermes", "a <tool b <tool_call> c", "a <tool b<tool_call> c", []),
    ("hermes", '<tool_call>{"name": "wea', '<tool_call>{"name": "wea', []),
    ("hermes", "<tool_call>{no json}</tool_call> b", "<tool_call>{no json}</tool_call> b", []),
    (
        "hermes",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        [],
    ),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>', None, []),  # type: ignore[list-item]
    ("llama", "Hello {there}", "Hello {there}", []),
    ("llama", '{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
    ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
    (
        "llama",
        '{"name": "weather", "parameters": {"city": "Rome"}}; '
        '{"name": "time_in", "parameters": {"city": "Oslo", "at": {"h": 1}}}',
        "",
        [ROME, OSLO],
    ),
    ("llama", '{"a": 1} and more', '{"a": 1} and more', []),
    ("llama", '{"name": "weather", "parameters": {"city": "Rome"}}\nDone.', "\nDone.", [ROME]),
    ("llama", '{"name": "weather", "par', '{"name": "weather", "par', []),
]


def _read(form: ToolFormat, pieces: list[str]) -> Parsed:
    reader, whole = ToolCallReader(form, NAMES), Parsed()
    for place, piece in enumerate(pieces):
        parsed = reader.push(piece, last=place == len(pieces) - 1)
        whole.content += parsed.content
        whole.calls += parsed.calls
    assert reader.num_calls == len(whole.calls)
    return whole


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_calls_and_text_are_the_same_however_the_answer_is_cut(
    form: ToolFormat, text: str, content: str | None, calls: list[ToolCall]
) -> None:
    expected = Parsed(text if content is None else content, calls)
    assert _read(form, [text]) == expected
    assert _read(form, [*text, ""]) == expected
    for at in range(1, len(text)):
        assert _read(form, [text[:at], text[at:]]) == expected
    for step in (2, 3, 7):
        assert _read(form, [text[i : i + step] for i in range(0, len(text), step)]) == expected


@pytest.mark.parametrize("form", ["hermes", "llama"])
def test_a_long_call_is_decoded_once_and_read_once(form: ToolFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(tools, "_value_of", lambda text: decoded.append(len(text)) or json.loads(text))
    scanned: list[int] = []
    read = JsonScan.read

    def counted(scan: JsonScan, text: str) -> None:
        before = scan._at
        read(scan, text)
        scanned.append(scan._at - before)

    monkeypatch.setattr(JsonScan, "read", counted)
    key = "parameters" if form == "llama" else "arguments"
    call = json.dumps({"name": "weather", key: {"city": '"Rome" \\ {[' * 500}})
    text = call if form == "llama" else f"<tool_call>{call}</tool_call>"
    assert [found.name for found in _read(form, [*text]).calls] == ["weather"]
    assert decoded == [len(call)]
    assert sum(scanned) <= len(text)


def test_text_before_a_call_comes_at_once() -> None:
    reader = ToolCallReader("hermes", NAMES)
    assert reader.push("I look it up").content == "I look it up"
    assert reader.push(" now <b").content == " now <b"
    assert reader.push(" <tool_").content == ""
    assert reader.push("box> ok").content == " <tool_box> ok"
    plain = ToolCallReader("llama", NAMES)
    assert plain.push("Hello").content == "Hello"
    assert plain.push(' {"name"').content == ' {"name"'


def test_the_form_is_that_of_the_chat_template() -> None:
    assert format_of("{% if tools %}<tool_call>{{ tools }}</tool_call>{% endif %}") == "hermes"
    assert format_of("{% if tools %}[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]{% endif %}") is None
    assert format_of('{% if tools %}{"name": n, "parameters": p}{% endif %}') == "llama"
    assert format_of("{% if tools %}<tool_call>\n<function=f>\n<parameter=p>{{ tools }}{% endif %}") is None
    assert format_of('{% if tools %}[TOOL_CALLS]{"name": n, "parameters": p}{% endif %}') is None
    assert format_of("{% for message in messages %}{{ message }}{% endfor %}") is None


TREE = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "near": {"$ref": "#"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Rome", "Oslo"]}},
}


@pytest.mark.parametrize("form", ["hermes", "llama"])
def test_a_forced_call_is_one_that_the_reader_takes(form: ToolFormat) -> None:
    grammar = enforceable(forced_call(form, {"weather": TREE, "time_in": {"type": "object", "properties": {}}}))
    vocabulary = xgrammar.TokenizerInfo(
        [*ByteLevel.alphabet(), "<end>"], xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=[256]
    )
    compiler = xgrammar.GrammarCompiler(vocabulary)
    assert grammar.kind == "structural_tag"
    compiled = compiler.compile_structural_tag(grammar.text)

    def accepts(call: str) -> bool:
        texts = {"hermes": f"<tool_call>\n{call}\n</tool_call>", "llama": call}
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        accepted = matcher.accept_string(texts[form]) and matcher.is_terminated()
        if accepted:
            [found] = _read(form, [texts[form]]).calls
            assert json.loads(found.arguments) == json.loads(call)["parameters" if form == "llama" else "arguments"]
        return bool(accepted)

    key = "parameters" if form == "llama" else "arguments"
    assert accepts(f'{{"name": "weather", "{key}": {{"city": "Rome"}}}}')
    assert accepts(f'{{"name": "weather", "{key}": {{"city": "Rome", "near": {{"city": "Oslo"}}}}}}')
    assert accepts(f'{{"name": "time_in", "{key}": {{}}}}')
    assert not accepts(f'{{"name": "weather", "{key}": {{"city": "Paris"}}}}')
    assert not accepts(f'{{"name": "weather", "{key}": {{"near": {{"city": "Oslo"}}}}}}')
    assert not accepts(f'{{"name": "unknown", "{key}": {{}}}}')
    assert not accepts(f'{{"name": "time_in", {" " * 20}"{key}": {{}}}}'), "blanks without end are no call"
    assert not re.search("Paris", grammar.text)
