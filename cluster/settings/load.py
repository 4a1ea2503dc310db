"""Strict settings: a YAML preset and `key.path=value` words in, one checked record out; every user error is a sentence.

Works on any pydantic record. Knows no job, no Ray and no environment variable.

YAML is read as people mean it, not as YAML 1.1 does: `1e-3` is a number, `no` and `on` are words, `010` and
`2024-01-01` stay text. A preset may extend another one, `extends: other.yaml` (relative to itself), merged key by key.
"""

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from cluster.errors import ClusterError
from cluster.masking import CredentialFound, mask_streams, remember_credentials, require_plain_buckets
from cluster.settings.errors import Layer, coercions, did_you_mean, sentences
from cluster.settings.help import example, help_text, only_record, shown

T = TypeVar("T", bound=BaseModel)

EXTENDS = "extends"
"""The one key of a preset that is ours and not the record's."""


class SettingsError(ClusterError):
    """A preset or override that cannot be used; the message is for the person who wrote it."""


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
        raise SettingsError(sentences(record, values, layers, error.errors(include_url=False))) from None
    if problems := coercions(values, loaded, layers):
        raise SettingsError(problems)
    return loaded


def command_line(
    record: type[T], argv: Sequence[str], program: str, about: str, flags: Mapping[str, str] | None = None
) -> tuple[T, set[str]]:
    """The record that `program PRESET.yaml key.path=value ... [--flag ...]` describes, and which of `flags` were given.

    `flags`: name -> help. `--help` prints every setting and exits 0; a user error is one sentence and exit code 2.
    From then on what the process prints is masked (`cluster.masking`).
    """
    mask_streams()
    options = {"--" + name.lstrip("-"): name for name in flags or {}}
    usage = " ".join([f"usage: {program} PRESET.yaml [key.path=value ...]", *(f"[{option}]" for option in options)])
    if "--help" in argv or "-h" in argv:
        listed = "".join(f"  {option}\n      {(flags or {})[name]}\n" for option, name in options.items())
        print(f"{usage}\n\n{about}\n\n{listed}\nSettings, in PRESET.yaml or as key.path=value:\n\n{help_text(record)}")
        raise SystemExit(0)
    given = [word for word in argv if word.startswith("-")]
    for word in given:
        if word not in options:
            _fail(program, f"unknown flag {word}{did_you_mean(word, options)}; {usage}")
    words = [word for word in argv if not word.startswith("-")]
    if not words or ("=" in words[0] and not words[0].endswith((".yaml", ".yml"))):
        _fail(program, f"the first word must be a preset file; {usage}")
    try:
        loaded = load(record, words[0], words[1:])
        settings = loaded.model_dump(mode="json")
        remember_credentials(settings)
        require_plain_buckets(settings)
        return loaded, {options[word] for word in given}
    except (SettingsError, CredentialFound) as error:
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
                    None,
                    None,
                    f"key {key_node.value!r} stands twice (line {seen[key_node.value]} and line {line}); keep one",
                    key_node.start_mark,
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
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
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


def _layers(path: str, above: tuple[str, ...] = ()) -> list[Layer]:
    """The file and what it extends, the base first."""
    if os.path.abspath(path) in above:
        raise SettingsError(f"{path} extends itself, by way of {' -> '.join([*above, path])}; remove one `{EXTENDS}`")
    try:
        with open(path, encoding="utf-8") as file:
            values = _parsed(file.read(), path)
    except OSError as error:
        extends = f", which {above[-1]} extends" if above else ""
        raise SettingsError(f"cannot read preset {path}{extends} ({error.strerror}){_beside(path)}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds {shown(values)}; a preset is a mapping, `key: value`")
    base = values.pop(EXTENDS, None)
    if base is None:
        return [Layer(f"in {path}", values)]
    if not isinstance(base, str):
        raise SettingsError(f"{EXTENDS} in {path} is {shown(base)}; allowed is one file name, relative to {path}")
    return [
        *_layers(os.path.join(os.path.dirname(path), base), (*above, os.path.abspath(path))),
        Layer(f"in {path}", values),
    ]


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

    Without this, one key of `train` in a preset would reset the others to the class's defaults, contrary to --help.
    """
    filled = dict(values)
    for name, field in record.model_fields.items():
        section = only_record(field.annotation)
        if section is None or not isinstance(filled.get(name), dict):
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, section):
            filled[name] = _merged(to_jsonable_python(default, inf_nan_mode="constants"), filled[name])
        filled[name] = _with_section_defaults(section, filled[name])
    return filled


def _place(node: Any, key: str, override: str, reached: str) -> Any:
    """`key`, as it indexes `node`. Raises SettingsError if `node` has no such place."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise SettingsError(
            f"{override}: {reached} is {shown(node)}, which has no keys below it; set {reached} as a whole"
        )
    if not key.isdigit() or int(key) >= len(node):
        raise SettingsError(
            f"{override}: {reached} is a list of {len(node)}, so {key!r} must be a number from 0 to {len(node) - 1}"
        )
    return int(key)


def _override(record: type[BaseModel], values: dict[str, Any], override: str) -> Layer:
    """Write one `key.path=value` into `values`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise SettingsError(f"{override!r} is no setting; write key.path=value, for example {example(record)}")
    value = _parsed(text, f"the value of {path}")
    node: Any = values
    section: type[BaseModel] | None = record
    for i, key in enumerate(keys):
        at = _place(node, key, override, ".".join(keys[:i]))
        if i == len(keys) - 1:
            node[at] = value
            break
        field = section.model_fields.get(key) if section else None
        section = only_record(field.annotation) if field else None
        if isinstance(node, dict) and node.get(at) is None:
            # Start from the default, so that `sources.0.limit=10` reaches into a default list.
            default = field.get_default(call_default_factory=True, validated_data={}) if field else None
            nested = isinstance(default, BaseModel | list | tuple | dict)
            node[at] = to_jsonable_python(default, inf_nan_mode="constants") if nested else {}
        elif isinstance(node[at], dict | list):
            node[at] = node[at].copy()  # the preset's own layer stays as its file is
        node = node[at]
    written: Any = value
    for key in reversed(keys):
        written = {key: written}
    return Layer("on the command line", written)
