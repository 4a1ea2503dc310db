"""What is wrong with written settings: a sentence per key with the value, where it was written, and what is allowed.

Knows no file, no YAML and no command line: it gets the place of each value.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from cluster.errors import ClusterError
from cluster.settings.help import keys, listed, number_allowed, plain, shown

LONGEST = 400
"""Characters of a message, all its sentences together."""


class SettingsError(ClusterError):
    """A preset or override that cannot be used; the message is for the person who wrote it."""

    def __init__(self, message: str):
        super().__init__(_fitted(message))


KEY_SHOWN = 120
SEARCHED = 10
"""Unknown keys of which the nearest known one is searched, among all: that takes milliseconds each."""
MORE = "; and {} more"


@dataclass(frozen=True)
class Layer:
    """Where some of the values were written: "in demo.yaml", or "on the command line" for one word of it."""

    place: str
    values: dict[str, Any]


ErrorKey = tuple[tuple[int | str, ...], str]


def error_key(error: ErrorDetails) -> ErrorKey:
    """What tells an error from the others."""
    return error["loc"], error["msg"]


def sentences(
    record: type[BaseModel],
    values: dict[str, Any],
    layers: Sequence[Layer],
    errors: Sequence[ErrorDetails],
    places: Mapping[ErrorKey, str],
) -> str:
    """One sentence per key. `places`: where what made the error was written, for keys that contradict each other."""
    found: dict[str, list[str]] = {}
    allowed: dict[str, tuple[str, list[str]]] = {}
    missing: dict[str, list[str]] = {}
    for error in errors:
        if error["type"] == "too_short" and error["ctx"]["actual_length"] < len(error["input"]):
            continue  # pydantic counts the items that are right, and those that are wrong have sentences of their own
        path = _path(error, values)
        key, where = plain(".".join(path), KEY_SHOWN), _where(layers, path)
        if error["type"] == "missing":
            missing[key] = [f"{key} is missing {where}; add it there, or give {key}=VALUE"]
        elif error["type"] == "extra_forbidden" and len(found) >= SEARCHED:
            found[key] = [f"unknown key {key} {where}"]
        elif error["type"] == "extra_forbidden":
            found[key] = [_unknown(record, ".".join(path), where)]
        elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
            found[key] = [_unknown_kind(key, where, error)]
        elif error["type"] in ("value_error", "assertion_error"):
            where = places[error_key(error)]
            found.setdefault(key, []).append(f"{key + ' ' if key else ''}{where}: {error['msg'].partition(', ')[2]}")
        else:
            # A key that allows several types has one error for each.
            written = f"{key}: got {shown(error['input'])} {where}"
            allowed.setdefault(key, (written, []))[1].append(_expected(record, path, error))
    for key, (written, expected_list) in allowed.items():
        found.setdefault(key, []).append(f"{written}; allowed: {' or '.join(dict.fromkeys(expected_list))}")
    found |= missing  # last: a misspelled key is missing as well
    return _together([sentence for sentences in found.values() for sentence in sentences], layers)


def _unknown(record: type[BaseModel], key: str, where: str) -> str:
    if now := renamed(record, key):
        return f"{plain(key, KEY_SHOWN)} {where} is called {plain(now, KEY_SHOWN)} now; rename it there"
    siblings = _siblings(record, key)
    near = did_you_mean(key, [*siblings, *(k for k in keys(record) if k not in siblings)])
    known = "" if near or not siblings else f"; known here: {listed(siblings)}"
    return f"unknown key {plain(key, KEY_SHOWN)} {where}{near}{known}"


def _unknown_kind(key: str, where: str, error: ErrorDetails) -> str:
    """A section of several kinds whose key that says which is missing or unknown."""
    context = error["ctx"]
    name = context["discriminator"].strip("'")
    if "tag" not in context:
        return f"{key}.{name} is missing {where}; add it there: it says of which kind {key} is"
    allowed = context["expected_tags"].replace("'", "")
    return f"{key}.{name}: got {shown(context['tag'])} {where}; allowed: {allowed}"


def _expected(record: type[BaseModel], path: Sequence[str], error: ErrorDetails) -> str:
    """What is allowed instead: the whole range of a number, not only the end that was passed."""
    kind = error["type"].removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    kind = kind.removesuffix("_parsing_size")
    if kind in _NUMBERS and (number := number_allowed(record, path)):
        return number
    return _EXPECTED.get(kind, error["msg"].removeprefix("Input should be "))


def _together(found: list[str], layers: Sequence[Layer]) -> str:
    """One sentence a line; the folder of a file stands in the first sentence that names the file."""
    for place in {layer.place for layer in layers if layer.place.startswith("in ")}:
        for at in [i for i, text in enumerate(found) if place in text][1:]:
            found[at] = found[at].replace(place, f"in {os.path.basename(place)}")
    return "\n".join(found)


def _fitted(message: str) -> str:
    """The sentences that fit in LONGEST characters, one a line, and how many more there are; nothing unprintable."""
    sentences = [plain(line, LONGEST - 3) for line in message.split("\n")]
    kept: list[str] = []
    for sentence in sentences:
        kept.append(sentence)
        if len("\n".join(kept)) + (len(MORE) if len(kept) < len(sentences) else 0) > LONGEST and len(kept) > 1:
            kept.pop()
            break
    if left := len(sentences) - len(kept):
        more = MORE.format(left)
        kept[-1] = plain(kept[-1], LONGEST - len(more) - sum(len(k) + 1 for k in kept[:-1]) - 3)
        kept[-1] += more
    return "\n".join(kept)


def renamed(record: type[BaseModel], key: str) -> str:
    """The new name of an older version's setting, else empty. `record.RENAMED`: old last word of a key -> new one."""
    section, _, last = key.rpartition(".")
    new = getattr(record, "RENAMED", {}).get(last)
    return f"{section}.{new}".lstrip(".") if new else ""


def coercions(values: Any, loaded: BaseModel, layers: Sequence[Layer]) -> str:
    """One sentence per scalar that was written as another kind than it was loaded as; empty if all is well."""
    found = [
        f"{plain('.'.join(path), KEY_SHOWN)}: got {shown(written)} {_where(layers, path)}; allowed: {allowed}"
        for path, written, allowed in _coerced(values, loaded)
    ]
    return _together(found, layers)


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

_NUMBERS = {
    *("int", "float", "finite_number"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
}


def _path(error: ErrorDetails, values: Any) -> list[str]:
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
    return path


def is_index(word: str, items: Sequence[Any]) -> bool:
    """Is the word the number of a place in the list?"""
    return word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(items)


def _where(layers: Sequence[Layer], path: Sequence[str]) -> str:
    """The last place that wrote the key or something it lies in; for a missing key, where its section stands."""
    for depth in range(len(path), 0, -1):
        for layer in reversed(layers):
            node: Any = layer.values
            for at in path[:depth]:
                if isinstance(node, list) and is_index(at, node):
                    node = node[int(at)]
                elif isinstance(node, dict) and at in node:
                    node = node[at]
                else:
                    break
            else:
                return layer.place
    return next(layer.place for layer in reversed(layers) if layer.place.startswith("in "))


def _coerced(written: Any, loaded: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Scalars that pydantic would silently convert: `"5"` or true for a number, 1 or `yes` for a switch."""
    if isinstance(written, dict) and isinstance(loaded, BaseModel | dict):
        for name, value in written.items():
            inner = getattr(loaded, name, None) if isinstance(loaded, BaseModel) else loaded.get(name)
            yield from _coerced(value, inner, (*path, name))
    elif isinstance(written, list) and isinstance(loaded, list | tuple) and len(written) == len(loaded):
        for i, (value, inner) in enumerate(zip(written, loaded, strict=True)):
            yield from _coerced(value, inner, (*path, str(i)))
    elif isinstance(loaded, bool) and not isinstance(written, bool) and isinstance(written, str | int | float):
        yield path, written, "true or false"
    elif type(loaded) in (int, float) and isinstance(written, str | bool):
        yield path, written, "a whole number, without quotes" if type(loaded) is int else "a number, without quotes"


def _siblings(record: type[BaseModel], key: str) -> list[str]:
    """All known keys of the section in which `key` stands."""
    above = re.sub(r"\.\d+(?=\.|$)", ".N", key).rpartition(".")[0]
    return [k for k in keys(record) if k.rpartition(".")[0] == above]


def did_you_mean(wrong: str, known: Sequence[str] | Mapping[str, str]) -> str:
    wrong = wrong[:KEY_SHOWN]
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    if not close:
        # `limitt` for `data.limit`: the right word, not the right section.
        last = difflib.get_close_matches(
            wrong.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.75
        )
        close = [k for k in known if last and k.rpartition(".")[2] == last[0]][:1]
    return f" (did you mean {close[0]}?)" if close else ""
