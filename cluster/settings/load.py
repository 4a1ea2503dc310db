"""Strict settings: a YAML preset and `key.path=value` words in, one checked record out; every user error is a sentence.

Works on any pydantic record. Knows no job, no Ray and no environment variable.

A preset may extend another one, `extends: other.yaml` (relative to itself), merged key by key.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from cluster.masking import CredentialFound, mask_streams, remember_credentials, require_plain_buckets
from cluster.settings.errors import (
    ErrorKey,
    Layer,
    SettingsError,
    coercions,
    did_you_mean,
    error_key,
    is_index,
    sentences,
)
from cluster.settings.help import example, help_text, listed, only_record, plain, shown, shown_file
from cluster.settings.preset_file import parsed, read_preset

T = TypeVar("T", bound=BaseModel)

EXTENDS = "extends"
"""The one key of a preset that is ours and not the record's."""
MAX_EXTENDS = 16
"""Presets that extend one another."""
MAX_PARTS = 20
"""Of a dotted key: more than any record is deep."""


def load(record: type[T], path: str, overrides: Sequence[str] = ()) -> T:
    """The record that the preset at `path` describes, with `key.path=value` overrides on top; raises SettingsError."""
    layers = _layers(os.fspath(path))
    states: list[dict[str, Any]] = []  # after each layer
    for layer in layers:
        states.append(_merged(states[-1] if states else {}, layer.values))
    for override in overrides:
        states.append(dict(states[-1]))
        layers.append(_override(record, states[-1], override))
    values = _with_section_defaults(record, states[-1])
    try:
        loaded = record.model_validate(values)
    except ValidationError as error:
        places = {key: layers[at].place for key, at in _begun(record, states).items()}
        raise SettingsError(sentences(record, values, layers, error.errors(include_url=False), places)) from None
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


def _layers(path: str, above: tuple[str, ...] = ()) -> list[Layer]:
    """The file and what it extends, the base first."""
    name = shown_file(path)
    if os.path.abspath(path) in above:
        raise SettingsError(f"{name} extends itself, by way of {shown_file(above[-1])}; remove one `{EXTENDS}`")
    if len(above) >= MAX_EXTENDS:
        raise SettingsError(f"{name} is extended by {len(above)} presets in a row; at most {MAX_EXTENDS} are read")
    try:
        values = read_preset(path, name)
    except (OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        extends = f", which {shown_file(above[-1])} extends" if above else ""
        reason = getattr(error, "strerror", None) or error  # ValueError: the name has a null character
        raise SettingsError(f"cannot read preset {name}{extends} ({reason}){_beside(path)}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{name} holds {shown(values)}; a preset is a mapping, `key: value`")
    base = values.pop(EXTENDS, None)
    if base is None:
        return [Layer(f"in {name}", values)]
    if not isinstance(base, str):
        raise SettingsError(f"{EXTENDS} in {name} is {shown(base)}; allowed is one file name, relative to its folder")
    return [
        *_layers(os.path.join(os.path.dirname(path), base), (*above, os.path.abspath(path))),
        Layer(f"in {name}", values),
    ]


def _begun(record: type[BaseModel], states: Sequence[dict[str, Any]]) -> dict[ErrorKey, int]:
    """Each error -> the first of the states that has it: what its layer wrote is wrong, alone or beside the others."""
    found: dict[ErrorKey, int] = {}
    for at, state in enumerate(states):
        try:
            record.model_validate(_with_section_defaults(record, state))
        except ValidationError as error:
            for one in error.errors(include_url=False):
                found.setdefault(error_key(one), at)
    return found


def _beside(path: str) -> str:
    """The presets in the folder where `path` was looked for."""
    folder = os.path.dirname(path) or "."
    with contextlib.suppress(OSError):
        if found := sorted(name for name in os.listdir(folder) if name.endswith((".yaml", ".yml"))):
            return f"; {shown_file(folder)} has {listed(found)}"
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


def _place(node: Any, key: str, reached: str) -> Any:
    """`key`, as it indexes `node`. Raises SettingsError if `node` has no such place; `reached`: the path of `node`."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise SettingsError(f"{reached} is {shown(node)}, which has no keys below it; set {reached} as a whole")
    if not node:
        raise SettingsError(f"{reached} is an empty list, so it has no {plain(key)!r}; set {reached} as a whole")
    if not is_index(key, node):
        raise SettingsError(
            f"{reached} is a list of {len(node)}, so {plain(key)!r} must be a number from 0 to {len(node) - 1}"
        )
    return int(key)


def _override(record: type[BaseModel], values: dict[str, Any], override: str) -> Layer:
    """Write one `key.path=value` into `values`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys) or len(keys) > MAX_PARTS:
        raise SettingsError(f"{plain(override)!r} is no setting; write key.path=value, for example {example(record)}")
    value = parsed(text, f"the value of {plain(path)}")
    node: Any = values
    section: type[BaseModel] | None = record
    for i, key in enumerate(keys):
        at = _place(node, key, plain(".".join(keys[:i])))
        if i == len(keys) - 1:
            node[at] = value
            break
        field = section.model_fields.get(key) if section else None
        section = only_record(field.annotation) if field else None
        node[at] = _opened(node.get(at) if isinstance(node, dict) else node[at], field)
        node = node[at]
    written: Any = value
    for key in reversed(keys):
        written = {key: written}
    return Layer("on the command line", written)


def _opened(below: Any, field: FieldInfo | None) -> Any:
    """What a deeper key is written into: a copy, as the preset's own layer stays as its file is."""
    if isinstance(below, dict | list):
        return below.copy()
    if below is not None:
        return below
    # Start from the default, so that `sources.0.limit=10` reaches into a default list.
    default = field.get_default(call_default_factory=True, validated_data={}) if field else None
    nested = isinstance(default, BaseModel | list | tuple | dict)
    return to_jsonable_python(default, inf_nan_mode="constants") if nested else {}
