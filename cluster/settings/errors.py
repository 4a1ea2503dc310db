"""What is wrong with written settings: a sentence per key with the value, where it was written, and what is allowed.

Knows no file, no YAML and no command line: it gets the place of each value.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from cluster.settings.help import keys, shown


@dataclass(frozen=True)
class Layer:
    """Where some of the values were written: "in demo.yaml", or "on the command line" for one word of it."""

    place: str
    values: dict[str, Any]


def sentences(
    record: type[BaseModel], values: dict[str, Any], layers: Sequence[Layer], errors: Sequence[ErrorDetails]
) -> str:
    """One sentence per key."""
    found: dict[str, list[str]] = {}
    allowed: dict[str, tuple[str, list[str]]] = {}
    for error in errors:
        if error["type"] == "too_short" and error["ctx"]["actual_length"] < len(error["input"]):
            continue  # pydantic counts the items that are right, and those that are wrong have sentences of their own
        key = _dotted(error, values)
        where = _where(layers, key)
        if error["type"] == "missing":
            found[key] = [f"{key} is missing {where}; add it there, or give {key}=VALUE"]
        elif error["type"] == "extra_forbidden" and (now := renamed(record, key)):
            found[key] = [f"{key} {where} is called {now} now; rename it there"]
        elif error["type"] == "extra_forbidden":
            siblings = _siblings(record, key)
            near = did_you_mean(key, [*siblings, *(k for k in keys(record) if k not in siblings)])
            found[key] = [
                f"unknown key {key} {where}{near}"
                + ("" if near else f"; known here: {', '.join(siblings)}" if siblings else "")
            ]
        elif error["type"] in ("value_error", "assertion_error"):
            found.setdefault(key, []).append(f"{key + ' ' if key else ''}{where}: {error['msg'].partition(', ')[2]}")
        else:
            # A key that allows several types has one error for each.
            kind = error["type"].removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
            expected = _EXPECTED.get(kind, error["msg"].removeprefix("Input should be "))
            allowed.setdefault(key, (f"{key}: got {shown(error['input'])} {where}", []))[1].append(expected)
    for key, (written, expected_list) in allowed.items():
        found.setdefault(key, []).append(f"{written}; allowed: {' or '.join(dict.fromkeys(expected_list))}")
    return "\n".join(sentence for sentences in found.values() for sentence in sentences)


def renamed(record: type[BaseModel], key: str) -> str:
    """The new name of an older version's setting, else empty. `record.RENAMED`: old last word of a key -> new one."""
    section, _, last = key.rpartition(".")
    new = getattr(record, "RENAMED", {}).get(last)
    return f"{section}.{new}".lstrip(".") if new else ""


def coercions(values: Any, loaded: BaseModel, layers: Sequence[Layer]) -> str:
    """One sentence per scalar that was written as another kind than it was loaded as; empty if all is well."""
    return "\n".join(
        f"{key}: got {shown(written)} {_where(layers, key)}; allowed: {allowed}"
        for key, written, allowed in _coerced(values, loaded)
    )


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
    path: list[str] = []
    for i, part in enumerate(loc):
        if isinstance(values, dict) and str(part) in values:
            values = values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not (error["type"] == "missing" and i == len(loc) - 1):
            continue
        path.append(str(part))
    return ".".join(path)


def _where(layers: Sequence[Layer], key: str) -> str:
    """The last place that wrote `key` or something it lies in; for a missing key, where its section stands."""
    path = key.split(".")
    for depth in range(len(path), 0, -1):
        for layer in reversed(layers):
            node: Any = layer.values
            for at in path[:depth]:
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
    """Scalars that pydantic would silently convert: `"5"` or true for a number, 1 or `yes` for a switch."""
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
    return [k for k in keys(record) if k.rpartition(".")[0] == above]


def did_you_mean(wrong: str, known: Sequence[str] | Mapping[str, str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    if not close:
        # `limitt` for `data.limit`: the right word, not the right section.
        last = difflib.get_close_matches(
            wrong.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.75
        )
        close = [k for k in known if last and k.rpartition(".")[2] == last[0]][:1]
    return f" (did you mean {close[0]}?)" if close else ""
