"""Strict settings: a YAML preset and `key.path=value` words in, one checked record out; every mistake is a sentence.

Works on any pydantic record and imports none of ours. Knows no job, no Ray and no environment variable.

YAML is read as people mean it, not as YAML 1.1 does: `1e-3` is a number, `no` and `on` are words, `010` and `2024-01-01`
stay text. A preset may start from another one, `extends: other.yaml` (relative to itself), merged key by key.
"""

import contextlib
import difflib
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python

T = TypeVar("T", bound=BaseModel)

EXTENDS = "extends"
"""The one key of a preset that is ours and not the record's."""


class SettingsError(ValueError):
    """A preset or override that cannot be used; the message is for the person who wrote it."""


@dataclass(frozen=True)
class _Layer:
    """Where some of the values were written: "in demo.yaml", or "on the command line" for one word of it."""

    place: str
    values: dict[str, Any]


def load(record: type[T], path: str, overrides: Sequence[str] = ()) -> T:
    """The record that the preset at `path` describes, with `key.path=value` overrides on top; raises SettingsError."""
    layers = _layers(path)
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merged(values, layer.values)
    for override in overrides:
        layers.append(_override(record, values, override))
    values = _with_section_defaults(record, values)
    try:
        loaded = record.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_sentences(record, values, layers, error.errors(include_url=False))) from None
    if problems := [f"{key}: got {_shown(got)} {_where(layers, key)}; allowed: {allowed}" for key, got, allowed in _coerced(values, loaded)]:
        raise SettingsError("\n".join(problems))
    return loaded


def command_line(record: type[T], argv: Sequence[str], program: str, about: str, flags: Mapping[str, str] | None = None) -> tuple[T, set[str]]:
    """What `program PRESET.yaml key.path=value ... [--flag ...]` asks for: the record, and which of `flags` (name -> help) were given.

    `--help` prints every setting and exits 0; a mistake is one sentence on stderr and exit code 2.
    """
    options = {"--" + name.lstrip("-"): name for name in flags or {}}
    usage = " ".join([f"usage: {program} PRESET.yaml [key.path=value ...]", *(f"[{option}]" for option in options)])
    if "--help" in argv or "-h" in argv:
        listed = "".join(f"  {option}\n      {(flags or {})[name]}\n" for option, name in options.items())
        print(f"{usage}\n\n{about}\n\n{listed}\nSettings, in PRESET.yaml or as key.path=value:\n\n{help_text(record)}")
        raise SystemExit(0)
    given = [word for word in argv if word.startswith("-")]
    for word in given:
        if word not in options:
            _fail(program, f"unknown flag {word}{_did_you_mean(word, options)}; {usage}")
    words = [word for word in argv if not word.startswith("-")]
    if not words or ("=" in words[0] and not words[0].endswith((".yaml", ".yml"))):
        _fail(program, f"the first word must be a preset file; {usage}")
    try:
        return load(record, words[0], words[1:]), {options[word] for word in given}
    except SettingsError as error:
        _fail(program, str(error))


def _fail(program: str, message: str) -> NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(2)


# --- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with the plain scalars of YAML 1.2's core schema, text keys only, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} stands twice (line {seen[key_node.value]} and line {line}); keep one", key_node.start_mark
                )
            seen[key_node.value] = line
            if key_node.tag != "tag:yaml.org,2002:merge":
                # `4: humor` and `null: x` have text keys as well, so that dotted paths are unambiguous.
                key_node.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        # Not SafeLoader's: that one reads 010 as 8.
        return int(str(self.construct_scalar(node)).replace("_", ""), 0)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark and "\n" in text.strip() else ""
        raise SettingsError(f"{where} is no valid YAML: {line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is no valid YAML: {error}") from None


def _layers(path: str, above: tuple[str, ...] = ()) -> list[_Layer]:
    """The file and what it extends, the base first."""
    if os.path.abspath(path) in above:
        raise SettingsError(f"{path} extends itself, by way of {' -> '.join([*above, path])}; remove one `{EXTENDS}`")
    try:
        with open(path, encoding="utf-8") as file:
            values = _parsed(file.read(), path)
    except OSError as error:
        said = f", which {above[-1]} extends" if above else ""
        raise SettingsError(f"cannot read preset {path}{said} ({error.strerror}){_beside(path)}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds {_shown(values)}; a preset is a mapping, `key: value`")
    base = values.pop(EXTENDS, None)
    if base is None:
        return [_Layer(f"in {path}", values)]
    if not isinstance(base, str):
        raise SettingsError(f"{EXTENDS} in {path} is {_shown(base)}; allowed is one file name, relative to {path}")
    return [*_layers(os.path.join(os.path.dirname(path), base), (*above, os.path.abspath(path))), _Layer(f"in {path}", values)]


def _beside(path: str) -> str:
    """The presets in the folder where `path` was looked for."""
    folder = os.path.dirname(path) or "."
    with contextlib.suppress(OSError):
        if found := sorted(name for name in os.listdir(folder) if name.endswith((".yaml", ".yml"))):
            return f"; {folder} has {', '.join(found)}"
    return ""


def _merged(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; anything else replaces."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _with_section_defaults(record: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over the defaults that a *field* gives a section (`train: Train = Train(epochs=3)`).

    Without this, one key of `train` in a preset would reset the others to the class's defaults, against what --help says.
    """
    filled = dict(values)
    for name, field in record.model_fields.items():
        section = _only_record(field.annotation)
        if section is None or not isinstance(filled.get(name), dict):
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, section):
            filled[name] = _merged(to_jsonable_python(default, inf_nan_mode="constants"), filled[name])
        filled[name] = _with_section_defaults(section, filled[name])
    return filled


def _override(record: type[BaseModel], values: dict[str, Any], override: str) -> _Layer:
    """Write one `key.path=value` into `values`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise SettingsError(f"{override!r} is no setting; write key.path=value, for example {_example(record)}")
    value = _parsed(text, f"the value of {path}")
    node: Any = values
    section: type[BaseModel] | None = record
    for i, key in enumerate(keys):
        reached = ".".join(keys[:i])
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise SettingsError(f"{override}: {reached} is a list of {len(node)}, so {key!r} must be a number from 0 to {len(node) - 1}")
            at: Any = int(key)
        elif isinstance(node, dict):
            at = key
        else:
            raise SettingsError(f"{override}: {reached} is {_shown(node)}, which has no keys below it; set {reached} as a whole")
        if i == len(keys) - 1:
            node[at] = value
            break
        field = section.model_fields.get(key) if section else None
        section = _only_record(field.annotation) if field else None
        if isinstance(node, dict) and node.get(at) is None:
            # Start from the default, so that `sources.0.limit=10` reaches into a default list.
            default = field.get_default(call_default_factory=True, validated_data={}) if field else None
            node[at] = to_jsonable_python(default, inf_nan_mode="constants") if isinstance(default, BaseModel | list | tuple | dict) else {}
        elif isinstance(node[at], dict | list):
            node[at] = node[at].copy()  # the preset's own layer keeps what its file says
        node = node[at]
    written: Any = value
    for key in reversed(keys):
        written = {key: written}
    return _Layer("on the command line", written)


def _example(record: type[BaseModel]) -> str:
    lines = [s for s in _described(record, None, "") if "NAME" not in s.key and ".N" not in s.key and not s.is_section]
    return f"{lines[0].key}=VALUE" if lines else "key=VALUE"


# --- mistakes ----------------------------------------------------------------------------------------------------------


def _sentences(record: type[BaseModel], values: dict[str, Any], layers: Sequence[_Layer], errors: Sequence[ErrorDetails]) -> str:
    """One sentence per key."""
    said: dict[str, list[str]] = {}
    allowed: dict[str, tuple[str, list[str]]] = {}
    for error in errors:
        key = _dotted(error, values)
        where = _where(layers, key)
        if error["type"] == "missing":
            said[key] = [f"{key} is missing {where}; add it there, or give {key}=VALUE"]
        elif error["type"] == "extra_forbidden":
            siblings = _siblings(record, key)
            near = _did_you_mean(key, [*siblings, *(s.key for s in _described(record, None, "") if s.key not in siblings)])
            said[key] = [f"unknown key {key} {where}{near}" + ("" if near else f"; known here: {', '.join(siblings)}" if siblings else "")]
        elif error["type"] in ("value_error", "assertion_error"):
            said.setdefault(key, []).append(f"{key + ' ' if key else ''}{where}: {error['msg'].partition(', ')[2]}")
        else:
            # A key that allows several types has one error for each.
            kind = error["type"].removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
            expected = _EXPECTED.get(kind, error["msg"].removeprefix("Input should be "))
            allowed.setdefault(key, (f"{key}: got {_shown(error['input'])} {where}", []))[1].append(expected)
    for key, (got, expected_list) in allowed.items():
        said.setdefault(key, []).append(f"{got}; allowed: {' or '.join(dict.fromkeys(expected_list))}")
    return "\n".join(sentence for sentences in said.values() for sentence in sentences)


# Where pydantic's words are a programmer's.
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "model": "a section (keys of its own)",
    "model_attributes": "a section (keys of its own)",
    "dict": "a section (keys of its own)",
}


def _dotted(error: ErrorDetails, values: Any) -> str:
    """The key as it is written: pydantic's location without the union members and validators it names on the way."""
    loc = [part for part in error["loc"] if part != "[key]"]
    keys: list[str] = []
    for i, part in enumerate(loc):
        if isinstance(values, dict) and str(part) in values:
            values = values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not (error["type"] == "missing" and i == len(loc) - 1):
            continue
        keys.append(str(part))
    return ".".join(keys)


def _where(layers: Sequence[_Layer], key: str) -> str:
    """The last place that wrote `key` or something it lies in; for a missing key, where its section stands."""
    keys = key.split(".")
    for depth in range(len(keys), 0, -1):
        for layer in reversed(layers):
            node: Any = layer.values
            for at in keys[:depth]:
                if isinstance(node, list) and at.isdigit() and int(at) < len(node):
                    node = node[int(at)]
                elif isinstance(node, dict) and at in node:
                    node = node[at]
                else:
                    break
            else:
                return layer.place
    return next(layer.place for layer in reversed(layers) if layer.place.startswith("in "))


def _coerced(written: Any, loaded: Any, key: str = "") -> Iterator[tuple[str, Any, str]]:
    """Scalars that pydantic would turn into another kind without a word: `"5"` or true for a number, 1 or `yes` for a switch."""
    if isinstance(written, dict) and isinstance(loaded, BaseModel | dict):
        for name, value in written.items():
            inner = getattr(loaded, name, None) if isinstance(loaded, BaseModel) else loaded.get(name)
            yield from _coerced(value, inner, f"{key}.{name}" if key else name)
    elif isinstance(written, list) and isinstance(loaded, list | tuple) and len(written) == len(loaded):
        for i, (value, inner) in enumerate(zip(written, loaded, strict=True)):
            yield from _coerced(value, inner, f"{key}.{i}")
    elif isinstance(loaded, bool) and not isinstance(written, bool) and isinstance(written, str | int | float):
        yield key, written, "true or false"
    elif type(loaded) in (int, float) and isinstance(written, str | bool):
        yield key, written, "a whole number, without quotes" if type(loaded) is int else "a number, without quotes"


def _siblings(record: type[BaseModel], key: str) -> list[str]:
    """All known keys of the section in which `key` stands."""
    above = re.sub(r"\.\d+(?=\.|$)", ".N", key).rpartition(".")[0]
    return [s.key for s in _described(record, None, "") if s.key.rpartition(".")[0] == above]


def _did_you_mean(wrong: str, known: Sequence[str] | Mapping[str, str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    if not close:
        # `limitt` for `data.limit`: the right word, not the right section.
        last = difflib.get_close_matches(wrong.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.75)
        close = [k for k in known if last and k.rpartition(".")[2] == last[0]][:1]
    return f" (did you mean {close[0]}?)" if close else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


# --- help --------------------------------------------------------------------------------------------------------------


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
    return "\n".join(
        f"  {s.key}  {s.type}{'' if s.is_section and not s.default else ' = ' + s.default if s.default else ' (required)'}"
        + (f"\n      {' '.join(s.help.split())}" if s.help else "")
        for s in _described(record, None, "")
    )


def _described(record: type[BaseModel], default: BaseModel | None, prefix: str, above: tuple[type, ...] = ()) -> Iterator[_Described]:
    """All keys in order, sections before what is in them; `default` is the instance that a field gives the section."""
    if record in above:
        return
    for name, field in record.model_fields.items():
        key = prefix + name
        value = getattr(default, name) if default is not None else _default(field)
        sections = list(_records(field.annotation))
        plain = len(sections) == 1 and sections[0][0] == "" and _only_record(field.annotation) is not None
        shown = "" if value is ... or (plain and isinstance(value, BaseModel)) else _shown(to_jsonable_python(value, fallback=str))
        yield _Described(key, _type_name(field.annotation) + _limits(field), shown, field.description or "", plain)
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


def _only_record(annotation: Any) -> type[BaseModel] | None:
    """The record, if the type is one record or one record or null."""
    parts = [part for part in (get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else [annotation]) if part is not type(None)]
    if len(parts) == 1 and get_origin(parts[0]) is None and isinstance(parts[0], type) and issubclass(parts[0], BaseModel):
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
    signs: dict[str, Callable[[Any], str]] = {
        "ge": lambda v: f">= {v}",
        "gt": lambda v: f"> {v}",
        "le": lambda v: f"<= {v}",
        "lt": lambda v: f"< {v}",
        "min_length": lambda v: f"at least {v} long",
        "max_length": lambda v: f"at most {v} long",
        "pattern": lambda v: f"like {v}",
    }
    found = [say(value) for rule in field.metadata for name, say in signs.items() if (value := getattr(rule, name, None)) is not None]
    return f" ({', '.join(found)})" if found else ""
