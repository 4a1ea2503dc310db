"""Toxicity of a text by hatesonar: a classifier of tweets by another maker, which no run has trained on.

An optional package (`make setup-real`); its model is a bag of words with a logistic regression, 1 MB, in ONNX. It knows
rude words, not intentions. Davidson et al. 2017, arXiv 1703.04009: hate speech, offensive language, neither.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError

PACKAGES = ("hatesonar", "onnxruntime")
NEITHER = 2
"""The class that is neither hate speech nor offensive language."""
LOWERING_NODE = b"StringNormalizer"
# Protobuf of ONNX: AttributeProto {name: "locale", s: "C", type: STRING}, as field 5 of a NodeProto.
LOCALE_C = b'*\x0e\n\x06locale"\x01C\xa0\x01\x03'
GRAPH, NODE, OP_TYPE = 7, 1, 4
"""Fields of ONNX's ModelProto, GraphProto and NodeProto."""


def missing() -> str:
    """Which package is not installed, with the command that helps; "" if all are there."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"package {' and '.join(absent)} is not installed: run `make setup-real`" if absent else ""


class Hatesonar:
    """The classifier, on the CPU of this process."""

    def __init__(self) -> None:
        """Raises UserError if it is not installed."""
        if reason := missing():
            raise UserError(f"evaluate.witnesses has hatesonar, and {reason}, or take it out")
        import onnxruntime

        spec = importlib.util.find_spec("hatesonar")
        assert spec, "it was found"
        model = (Path(str(spec.origin)).parent / "model" / "model.onnx").read_bytes()
        self._session = onnxruntime.InferenceSession(lowering_anywhere(model), providers=["CPUExecutionProvider"])

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The probability of hate speech or offensive language in each text, 0 to 1."""
        if not texts:
            return []
        _, probabilities = self._session.run(None, {"text": np.array(texts, dtype=object)})
        return [1.0 - float(_of_class(row, NEITHER)) for row in probabilities]


def _of_class(row: Any, index: int) -> float:
    return row[index]


def lowering_anywhere(model: bytes) -> bytes:
    """The model with its lower-casing in locale C.

    As it comes, it wants en_US.UTF-8, which small images lack, and then it does not load. Its words are ASCII, which
    both lower alike.
    """
    return b"".join(_field(*part, _graph if part[0] == GRAPH else None) for part in _fields(model))


def _graph(graph: bytes) -> bytes:
    return b"".join(_field(*part, _node if part[0] == NODE else None) for part in _fields(graph))


def _node(node: bytes) -> bytes:
    lowers = any(number == OP_TYPE and value == LOWERING_NODE for number, value, _ in _fields(node))
    return node + LOCALE_C if lowers else node


def _field(number: int, value: bytes, raw: bytes, change: Any = None) -> bytes:
    """The field as it was, or with what `change` makes of its value."""
    if change is None:
        return raw
    changed = change(value)
    return _varint(number << 3 | 2) + _varint(len(changed)) + changed


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, value (of those that have a length, else empty) and all bytes of each field of a protobuf message."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        number, kind, value = key >> 3, key & 7, b""
        if kind == 0:
            _, position = _read_varint(message, position)
        elif kind == 2:
            size, position = _read_varint(message, position)
            value, position = message[position : position + size], position + size
        else:
            position += {1: 8, 5: 4}[kind]
        yield number, value, message[start:position]


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
