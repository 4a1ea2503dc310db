import json
import re
from typing import Any

import pytest

from actors.generation.grammar_check import CHARACTER, MAX_CHARS, enforceable
from actors.generation.protocol import Grammar

WHOLE = {"type": "integer"}


def _schema(schema: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array", "uniqueItems": True}, "at $: leave out uniqueItems"),
        ({"not": WHOLE}, "at $: leave out not"),
        ({"type": "object", "properties": {"a": {"if": {}, "then": {}}}}, "at $.a: leave out if"),
        ({"type": "array", "items": {"type": "number", "multipleOf": 0.1}}, "at $.items: leave out multipleOf"),
        ({"allOf": [WHOLE, WHOLE]}, "at $: allOf may have one schema only"),
        ({"anyOf": [WHOLE], "required": ["a"]}, "at $: required would be ignored beside anyOf: write it into"),
        ({"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": WHOLE}}, "at $: minimum needs a type beside it"),
        ({"$ref": "https://example.org/a.json"}, "at $: $ref must begin with #, because no schema is fetched"),
        ({"minimum": 3}, "at $: minimum needs a type beside it"),
        ({"type": "string", "maxLength": 10**9}, "at $: maxLength must be a whole number from 0 to 100,000"),
        ({"type": "string", "maxLength": "3"}, "at $: maxLength must be a whole number from 0 to 100,000"),
        ({"type": "string", "minLength": 4, "maxLength": 3}, "at $: minLength 4 is above maxLength 3"),
        ({"type": "string", "pattern": "a+", "maxLength": 3}, "leaves no room for minLength and maxLength"),
        ({"type": "string", "pattern": "^(?!a)b"}, "at $: the pattern may not look ahead or behind"),
        ({"type": "string", "format": "email", "maxLength": 3}, "leaves no room for minLength and maxLength"),
        ({"type": "object", "properties": {"a": WHOLE}, "patternProperties": {"b": WHOLE}}, "patternProperties may"),
        ({"type": "object", "properties": {"a": WHOLE}, "propertyNames": {"type": "string"}}, "propertyNames may not"),
    ],
)
def test_a_schema_that_would_be_followed_in_part_is_refused(schema: Any, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        enforceable(_schema(schema))
    assert str(caught.value).startswith("the JSON schema cannot be enforced at $")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar("json_schema", ""), "the json schema has 0 characters: 1 to 65536 are allowed"),
        (Grammar("json_schema", " " * (MAX_CHARS + 1)), "the json schema has 65537 characters"),
        (Grammar("json_schema", "{"), "the json schema is no JSON: Expecting property name"),
        (Grammar("json_schema", "[" * 5000), "the json schema is no JSON: maximum recursion depth exceeded"),
        (Grammar("json_schema", "[" * 65 + "]" * 65), "more than 64 objects and lists in each other: make it flatter"),
        (Grammar("json_schema", "[1]"), "the json schema is not understood: Schema should be an object or bool"),
        (_schema({"type": "strin"}), 'the json schema is not understood: Unsupported type "strin"'),
        (_schema({"$ref": "#/$defs/none"}), "the json schema is not understood: Cannot find field $defs"),
        (_schema({"type": "integer", "minimum": 5, "maximum": 3}), "Invalid range: minimum greater than maximum"),
        (Grammar("regex", "(a"), "the regex is not understood: Regex parsing error at position 3: The parenthesis is"),
        (Grammar("regex", "a(?=b)"), "the regex is not understood: Regex parsing error at position 4: Lookahead is"),
        (Grammar("ebnf", "root ::= x"), 'the ebnf is not understood: EBNF parser error at line 1, column 10: Rule "x"'),
        (Grammar("structural_tag", '{"a": 1}'), "the structural tag is not understood: "),
        (
            Grammar("structural_tag", json.dumps({"format": {"type": "json_schema", "json_schema": {"not": {}}}})),
            "the JSON schema cannot be enforced at $: leave out not",
        ),
    ],
)
def test_what_is_no_grammar_is_one_sentence(grammar: Grammar, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        enforceable(grammar)
    assert not re.search(r"\n|/project|\.cc", str(caught.value))


def test_words_of_a_schema_s_data_are_no_keywords() -> None:
    enforceable(Grammar("json_object"))
    enforceable(_schema({"type": "object", "properties": {"not": WHOLE, "minimum": WHOLE}, "required": ["not"]}))
    enforceable(_schema({"enum": [{"not": 1}, {"if": 2}], "description": "multipleOf", "default": {"not": 3}}))
    enforceable(_schema({"$ref": "#/$defs/a", "description": "as pydantic writes it", "$defs": {"a": WHOLE}}))
    enforceable(_schema({"anyOf": [WHOLE, {"type": "null"}], "default": None, "title": "A"}))
    enforceable(_schema({"type": "string", "pattern": r"\(\?=a\)"}))


def test_lengths_of_strings_become_patterns_that_allow_no_control_characters() -> None:
    properties = {
        "a": {"type": "string", "maxLength": 7},
        "b": {"type": ["string", "null"], "minLength": 2},
        "c": {"type": "string", "maxLength": 0},
        "d": {"type": "string", "format": "isbn", "minLength": 1},
        "e": {"type": "string", "format": "email"},
        "maxLength": WHOLE,
    }
    found = json.loads(enforceable(_schema({"type": "object", "properties": properties})).text)["properties"]
    assert found["a"] == {"type": "string", "pattern": f"^{CHARACTER}{{0,7}}$"}
    assert found["b"] == {"type": ["string", "null"], "pattern": f"^{CHARACTER}{{2,}}$"}
    assert found["c"] == {"type": "string", "pattern": "^$"}
    assert found["maxLength"] == WHOLE
    # A format that is not known is a note.
    assert found["d"] == {"type": "string", "pattern": f"^{CHARACTER}{{1,}}$"}
    assert found["e"] == {"type": "string", "format": "email"}
    for character in ("a", " ", "[", "]", "/", "é", "\U0001f41d", "\ud7ff", "\ue000"):
        assert re.fullmatch(CHARACTER, character)
    assert not any(re.fullmatch(CHARACTER, c) for c in ('"', "\\", "\t", "\n", "\x00", "\x1f", "\ud800", "\udfff"))
