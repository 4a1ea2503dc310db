"""Can a grammar be followed to the letter? Refuses what xgrammar would ignore, so that no answer breaks its schema.

Both engines ask here. Knows no tokenizer and no engine; vLLM's own rules are a part of these.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from actors.generation.protocol import Grammar
from data.errors import UserError
from data.printable import printable

MAX_CHARS = 65_536
MAX_DEPTH = 64
"""Objects and lists in each other, in a schema; vLLM's bound."""
MAX_COUNT = 100_000
"""Of a length or a number of items: seconds of compiling."""
SHOWN_CHARS = 160

IGNORED = {
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "multipleOf"),
    *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems", "$dynamicRef", "$recursiveRef"),
}
"""Keywords that xgrammar reads over."""
LENGTHS = {"minLength", "maxLength"}
COUNTS = LENGTHS | {"minItems", "maxItems", "minProperties", "maxProperties"}
TYPED = COUNTS | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern"}
"""Keywords that xgrammar reads only beside a type."""
ONLY = ("$ref", "anyOf", "oneOf", "allOf")
"""Keywords beside which xgrammar reads no other that bounds the value."""
BOUNDS = TYPED | {"type", "enum", "const", "properties", "required", "items", "prefixItems", "additionalProperties"}
CHARACTER = "[ !#-\\[\\]-\ud7ff\ue000-\U0010ffff]"
"""A pattern: one that a JSON text has as it is. Halves of surrogate pairs are none, and no tokenizer reads them."""
FORMATS = {
    *("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference"),
    *("uri-template", "json-pointer", "relative-json-pointer"),
}
"""What xgrammar follows."""
LOOK_AROUND = re.compile(r"(?<!\\)\(\?[=!<]")
PLACE = re.compile(r"\[[\d:]+\] \S+?:\d+: ")
"""The time and the source line that xgrammar's messages begin with."""


def enforceable(grammar: Grammar) -> Grammar:
    """The same grammar, as xgrammar follows it to the letter. Takes milliseconds.

    Raises UserError, in one sentence, if it is none or cannot be followed so.
    """
    import xgrammar

    name = grammar.kind.replace("_", " ")
    if grammar.kind != "json_object" and not 0 < len(grammar.text) <= MAX_CHARS:
        raise UserError(f"the {name} has {len(grammar.text)} characters: 1 to {MAX_CHARS} are allowed")
    if grammar.kind in ("json_schema", "structural_tag"):
        parsed = _parsed(grammar.text, name)
        for schema in [parsed] if grammar.kind == "json_schema" else _schemas_of_tag(parsed):
            _make_enforceable(schema)
        grammar = Grammar(grammar.kind, json.dumps(parsed, ensure_ascii=False))
    readers: dict[str, Callable[[str], object]] = {
        "json_schema": xgrammar.Grammar.from_json_schema,
        "regex": xgrammar.Grammar.from_regex,
        "ebnf": xgrammar.Grammar.from_ebnf,
        "structural_tag": xgrammar.Grammar.from_structural_tag,
    }
    try:
        if grammar.kind in readers:
            readers[grammar.kind](grammar.text)
    except Exception as error:
        raise UserError(f"the {name} is not understood: {one_line(error)}") from None
    return grammar


def one_line(error: Exception) -> str:
    """What xgrammar says, without its own source lines."""
    return printable(PLACE.sub("", str(error)).strip().replace("\n", " "), SHOWN_CHARS)


def _parsed(text: str, name: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the {name} is no JSON: {printable(str(error), SHOWN_CHARS)}") from None
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
    if level:
        raise UserError(f"the {name} has more than {MAX_DEPTH} objects and lists in each other: make it flatter")
    return found


def _children(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in inner if isinstance(child, dict | list)]


def _make_enforceable(root: Any) -> None:
    """In place. Raises UserError for a keyword that would be ignored."""
    for at, schema in [*_subschemas(root, "$")]:
        if schema.get("format") not in FORMATS:  # a note that binds nobody, says JSON Schema; vLLM refuses it
            schema.pop("format", None)
        if why := _unsupported(schema):
            raise UserError(f"the JSON schema cannot be enforced at {printable(at, SHOWN_CHARS)}: {why}")
        if LENGTHS & schema.keys():
            # A string of such a length may have control characters in xgrammar, which no JSON may have.
            low, high = schema.pop("minLength", 0), schema.pop("maxLength", "")
            schema["pattern"] = f"^{CHARACTER}{{{low},{high}}}$" if high != 0 else "^$"


def _schemas_of_tag(value: Any) -> Iterator[Any]:
    """The schemas in a structural tag."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "json_schema":
                yield inner
            else:
                yield from _schemas_of_tag(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _schemas_of_tag(inner)


def _subschemas(schema: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, schema) of a schema and of all in it; what is data (enum, const, default, examples) is none."""
    if not isinstance(schema, dict):
        return
    yield at, schema
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            for name, inner in value.items():
                yield from _subschemas(inner, f"{at}.{name}")
        elif key in ("items", "additionalProperties", "propertyNames", "unevaluatedProperties", "additionalItems"):
            yield from _subschemas(value, f"{at}.{key}")
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _subschemas(inner, f"{at}.{key}[{number}]")


def _unsupported(schema: dict[str, Any]) -> str:
    """Why one schema, without those in it, would not be followed; "" = it would."""
    if found := sorted(IGNORED & schema.keys()):
        return f"leave out {found[0]}"
    if found := sorted(key for key in COUNTS & schema.keys() if not _is_count(schema[key])):
        return f"{found[0]} must be a whole number from 0 to {MAX_COUNT:,}"
    if schema.get("minLength", 0) > schema.get("maxLength", MAX_COUNT):
        return f"minLength {schema['minLength']} is above maxLength {schema['maxLength']}"
    if "type" not in schema and (found := sorted(TYPED & schema.keys())):
        return f"{found[0]} needs a type beside it"
    for key in ONLY:
        if key in schema and (found := sorted((BOUNDS | {*ONLY}) & schema.keys() - {key})):
            return f"{found[0]} would be ignored beside {key}: write it into the schemas there"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        return "allOf may have one schema only"
    if not str(schema.get("$ref", "#")).startswith("#"):
        return "$ref must begin with #, because no schema is fetched"
    return _unsupported_string(schema) or _unsupported_object(schema)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _unsupported_string(schema: dict[str, Any]) -> str:
    if {"pattern", "format"} & schema.keys() and LENGTHS & schema.keys():
        return "a pattern or a format leaves no room for minLength and maxLength: write the length into the pattern"
    if LOOK_AROUND.search(str(schema.get("pattern", ""))):
        return "the pattern may not look ahead or behind"
    return ""


def _unsupported_object(schema: dict[str, Any]) -> str:
    names = schema.get("propertyNames")
    if names is not None and {"properties", "patternProperties", "unevaluatedProperties"} & schema.keys():
        return "propertyNames may not stand beside properties of their own"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and ("properties" in schema or len(patterns) > 1):
        return "patternProperties may have one pattern, and no properties beside it"
    return ""
