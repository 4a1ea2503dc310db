"""All settings: every key of a record with its type, default and meaning, for `--help` and for error messages.

Knows no preset and no value that anyone wrote.
"""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

SHOWN = 80
"""Characters of a value that a message repeats."""
PATH_SHOWN = 120


@dataclass(frozen=True)
class _Described:
    """One line of --help."""

    key: str
    type: str
    default: str
    help: str
    is_section: bool


def help_text(record: type[BaseModel]) -> str:
    """Every key with its type, default and meaning; `N` stands for a place in a list, `NAME` for a key of one's own."""
    return "\n".join(map(_help_lines, _described(record, None, "")))


def _help_lines(s: _Described) -> str:
    default = f" = {s.default}" if s.default else "" if s.is_section else " (required)"
    return f"  {s.key}  {s.type}{default}" + (f"\n      {' '.join(s.help.split())}" if s.help else "")


def keys(record: type[BaseModel]) -> list[str]:
    """Every key, sections before what is in them."""
    return [s.key for s in _described(record, None, "")]


def example(record: type[BaseModel]) -> str:
    """The first setting as a word of the command line."""
    lines = [s for s in _described(record, None, "") if "NAME" not in s.key and ".N" not in s.key and not s.is_section]
    return f"{lines[0].key}=VALUE" if lines else "key=VALUE"


def _described(
    record: type[BaseModel], default: BaseModel | None, prefix: str, above: tuple[type, ...] = ()
) -> Iterator[_Described]:
    """All keys in order, sections before what is in them; `default` is the instance that a field gives the section."""
    if record in above:
        return
    for name, field in record.model_fields.items():
        key = prefix + name
        value = getattr(default, name) if default is not None else _default(field)
        sections = list(_records(field.annotation))
        is_plain = len(sections) == 1 and sections[0][0] == "" and only_record(field.annotation) is not None
        written = (
            ""
            if value is ... or (is_plain and isinstance(value, BaseModel))
            else shown(to_jsonable_python(value, fallback=str))
        )
        type_name = _type_name(field.annotation) + _limits(field.metadata)
        yield _Described(key, type_name, written, field.description or "", is_plain)
        for suffix, section in sections:
            inner = value if suffix == "" and isinstance(value, section) else None
            yield from _described(section, inner, f"{key}{suffix}.", (*above, record))


def _default(field: FieldInfo) -> Any:
    return ... if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _records(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The records in a type, with the path that leads to each: "" itself, ".N" in a list, ".NAME" in a mapping."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and origin is None and issubclass(annotation, BaseModel):
        yield "", annotation
    elif origin in (list, tuple, set, frozenset, Sequence):
        for part in dict.fromkeys(inner):
            yield from ((".N" + suffix, section) for suffix, section in _records(part))
    elif origin in (dict, Mapping):
        yield from ((".NAME" + suffix, section) for suffix, section in _records(inner[1]))
    elif origin is not None:
        for part in inner:
            yield from _records(part)


def only_record(annotation: Any) -> type[BaseModel] | None:
    """The record, if the type is one record or one record or null."""
    parts = [
        part
        for part in (get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else [annotation])
        if part is not type(None)
    ]
    if (
        len(parts) == 1
        and get_origin(parts[0]) is None
        and isinstance(parts[0], type)
        and issubclass(parts[0], BaseModel)
    ):
        return parts[0]
    return None


_NAMES = {int: "whole number", float: "number", str: "text", bool: "true|false", type(None): "null", Any: "anything"}


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in inner))
    if origin in (list, tuple, set, frozenset, Sequence):
        return "list of " + " or ".join(dict.fromkeys(_type_name(part) for part in inner if part is not ...))
    if origin in (dict, Mapping):
        return f"mapping of {_type_name(inner[0])} to {_type_name(inner[1])}"
    if origin is Annotated:
        return _type_name(inner[0]) + _limits(inner[1:])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(rules: Sequence[Any]) -> str:
    """` (>= 1, < 4)` from the constraints of a type; ` (1 to 4)` where both ends belong to it."""
    found = _constraints(rules)
    if {"ge", "le"} <= found.keys():
        ends = f"{_number(found.pop('ge'))} to {_number(found.pop('le'))}"
    else:
        ends = ""
    texts = [text.format(_number(found[name])) for name, text in _SIGNS.items() if name in found]
    return f" ({', '.join(filter(None, (ends, *texts)))})" if ends or texts else ""


_SIGNS = {
    "ge": ">= {}",
    "gt": "> {}",
    "le": "<= {}",
    "lt": "< {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
    "pattern": "like {}",
}


def _constraints(rules: Sequence[Any]) -> dict[str, Any]:
    """The constraints of an annotated type or a field by name, the narrowest of each."""
    found: dict[str, Any] = {}
    for rule in rules:
        if isinstance(rule, FieldInfo):
            found |= _constraints(rule.metadata)
            continue
        for name in _SIGNS:
            value = getattr(rule, name, None)
            if value is not None:
                narrowest = max if name in ("ge", "gt") else min
                found[name] = narrowest(found[name], value) if name in found else value
    return found


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def number_allowed(record: type[BaseModel], path: Sequence[str]) -> str:
    """`a whole number from 1 to 4` for the setting at `path`; "" if it takes no number."""
    field = record.model_fields.get(path[0]) if path else None
    return _number_in(field.annotation, path[1:], field.metadata) if field else ""


def _number_in(annotation: Any, path: Sequence[str], rules: Sequence[Any]) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _number_in(inner[0], path, [*inner[1:], *rules])
    if origin in (Union, types.UnionType):
        return next(filter(None, (_number_in(part, path, rules) for part in inner)), "")
    if origin in (dict, Mapping) or origin in (list, tuple, set, frozenset, Sequence):
        return _number_in(inner[-1 if origin in (dict, Mapping) else 0], path[1:], ()) if path else ""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return number_allowed(annotation, path)
    if path or annotation not in (int, float):
        return ""
    found = _constraints(rules)
    texts = [text.format(_number(found[name])) for name, text in _RANGE.items() if name in found]
    if {"ge", "le"} <= found.keys():
        texts = [f"from {_number(found['ge'])} to {_number(found['le'])}"]
    return " ".join(("a whole number" if annotation is int else "a number", " and ".join(texts))).strip()


_RANGE = {"gt": "greater than {}", "ge": "at least {}", "lt": "less than {}", "le": "at most {}"}


def shown(value: Any) -> str:
    """A value as help and error messages repeat it: JSON on one line, cut, what no terminal may obey escaped."""
    if isinstance(value, dict | list | tuple) and len(value) > SHOWN:
        return f"{'a section' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return plain(text) if len(text) <= SHOWN else f"{plain(text[:60], 60)}... ({len(text)} characters)"


def plain(text: str, limit: int = SHOWN) -> str:
    """`text` in at most `limit` characters and "..."; what no terminal may obey is escaped, as data.printable does."""
    escaped = text[:limit]
    if not escaped.isprintable():
        escaped = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in escaped
        )
    return escaped if len(text) <= limit and len(escaped) <= limit else f"{escaped[:limit]}..."


def shown_file(path: str) -> str:
    """A file's name in a message; of a very long one its end."""
    return plain(path if len(path) <= PATH_SHOWN else f"...{path[-PATH_SHOWN:]}", PATH_SHOWN + 3)


def listed(names: Sequence[str], limit: int = 150) -> str:
    """`a, b, c`; of many those that fit in `limit` characters, and how many more there are."""
    shown_names: list[str] = []
    for name in names:
        if shown_names and len(", ".join([*shown_names, name])) > limit:
            return f"{', '.join(shown_names)} and {len(names) - len(shown_names)} more"
        shown_names.append(plain(name))
    return ", ".join(shown_names)
