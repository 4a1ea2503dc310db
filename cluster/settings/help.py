"""All settings: every key of a record with its type, default and meaning, for `--help` and for error messages.

Knows no preset and no value that anyone wrote.
"""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


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
        plain = len(sections) == 1 and sections[0][0] == "" and only_record(field.annotation) is not None
        written = (
            ""
            if value is ... or (plain and isinstance(value, BaseModel))
            else shown(to_jsonable_python(value, fallback=str))
        )
        yield _Described(key, _type_name(field.annotation) + _limits(field), written, field.description or "", plain)
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
    if origin is not None and inner:  # Annotated
        return _type_name(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(field: FieldInfo) -> str:
    """` >= 1, < 4` from a field's constraints."""
    signs = {
        "ge": ">= {}",
        "gt": "> {}",
        "le": "<= {}",
        "lt": "< {}",
        "min_length": "at least {} long",
        "max_length": "at most {} long",
        "pattern": "like {}",
    }
    found = [
        text.format(value)
        for rule in field.metadata
        for name, text in signs.items()
        if (value := getattr(rule, name, None)) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def shown(value: Any) -> str:
    """A value as help and error messages repeat it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
