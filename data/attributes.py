"""The attribute schema: which attributes there are, their ranges, and what a value means.

It travels with every dataset, checkpoint and endpoint. Knows no prompt format (`data.template` does).
"""

import hashlib
import sys
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from data.bounds import ScaleValue
from data.errors import UserError, nearest
from data.printable import printable
from data.record import Record

Values = Mapping[str, float]
"""Attribute name -> value, in the units of the schema; a missing or NaN entry means "not rated"."""


class AttributeProblem(UserError):
    """A wrong attribute name or value; `attribute` names the field to fix."""

    def __init__(self, attribute: str, message: str):
        super().__init__(message)
        self.attribute = attribute


class SchemaMismatch(UserError):
    """Two artifacts with different schemas met."""


class Attribute(Record):
    """One attribute of an answer, on a scale of whole numbers."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Lower-case identifier, as written in the label line."""
    low: ScaleValue = 0
    """Smallest value on the scale."""
    high: ScaleValue = 4
    """Largest value on the scale."""
    default: ScaleValue
    """What the server requests when the caller sets nothing."""
    meaning: str
    """One sentence for people who set the attribute."""
    better: Literal["higher", "lower", "neither"]
    """Which end of the scale is the better one."""
    steerable: bool = True
    """May a caller set it?"""
    phrases: tuple[str, ...] = ()
    """Its values in words for `template: words`, from low to high and spread evenly over the scale, two or more; () =
    the shipped ones for this name (`data.words_template`)."""

    @model_serializer(mode="wrap")
    def _without_absent_phrases(self, record: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A schema without words of its own is stored, and its fingerprint taken, as before there were any."""
        fields: dict[str, Any] = record(self)
        return fields if self.phrases else {name: value for name, value in fields.items() if name != "phrases"}

    @model_validator(mode="after")
    def _range(self) -> "Attribute":
        if not self.low < self.high:
            raise UserError(f"attribute {self.name}: low {self.low} must be below high {self.high}")
        if not self.low <= self.default <= self.high:
            raise UserError(f"attribute {self.name}: default {self.default} is outside {self.low}..{self.high}")
        if len(self.phrases) == 1 or any(not phrase.strip() for phrase in self.phrases):
            raise UserError(
                f"attribute {self.name}: phrases has {len(self.phrases)} entries; write two or more sentences, none "
                "empty, from low to high"
            )
        return self

    @property
    def best(self) -> int:
        """The value to ask for when nothing but quality counts."""
        return {"higher": self.high, "lower": self.low, "neither": self.default}[self.better]

    def rounded(self, value: float) -> int:
        """Clip to the range, then round half to even (NeMo-Aligner's rounding): 2.5 -> 2, 3.5 -> 4."""
        return round(min(max(float(value), self.low), self.high))


class AttributeSchema(Record):
    """The ordered attributes of a run. Their order is that of the label line and of the regression heads."""

    name: str
    """Name of the schema."""
    attributes: tuple[Attribute, ...] = Field(min_length=1)
    """The attributes, in label-line order."""

    @model_validator(mode="after")
    def _unique(self) -> "AttributeSchema":
        if len(set(self.names)) < len(self.names):
            raise UserError(f"schema {self.name}: attribute names must be unique, got {', '.join(self.names)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.attributes)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits; equal only if every field of every attribute is equal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def __getitem__(self, name: str) -> Attribute:
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise AttributeProblem(
            name,
            f"unknown attribute {name!r}{nearest(name, self.names)}; schema {self.name!r} has {', '.join(self.names)}",
        )

    def best(self) -> dict[str, int]:
        """All attributes at best."""
        return {a.name: a.best for a in self.attributes}

    def defaults(self) -> dict[str, int]:
        return {a.name: a.default for a in self.attributes}

    def checked(self, values: Mapping[str, object]) -> dict[str, float]:
        """`values` as floats, in schema order.

        Raises AttributeProblem for an unknown name, a value that is no finite number, or one out of range.
        """
        for name in values:
            self[name]
        checked = {}
        for attribute in self.attributes:
            if attribute.name not in values:
                continue
            value = values[attribute.name]
            allowed = f"an allowed value is a number from {attribute.low} to {attribute.high}"
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not (-sys.float_info.max <= value <= sys.float_info.max)
            ):
                raise AttributeProblem(attribute.name, f"attribute {attribute.name!r} got {value!r}: {allowed}")
            if not attribute.low <= value <= attribute.high:
                raise AttributeProblem(
                    attribute.name, f"attribute {attribute.name!r} got {value}, out of range: {allowed}"
                )
            checked[attribute.name] = float(value)
        return checked

    def require_same(self, other: "AttributeSchema", ours: str, theirs: str) -> None:
        """Raise SchemaMismatch, naming both artifacts, unless the schemas are equal."""
        if self != other:
            raise SchemaMismatch(
                f"{ours} has attribute schema {self._shown()} but {theirs} has {other._shown()}; "
                "set `attributes` to the schema of both, or rebuild one of them"
            )

    def _shown(self) -> str:
        return f"{printable(self.name, 40)!r} ({self.fingerprint}: {printable(', '.join(self.names))})"


def shipped(name: str) -> AttributeSchema:
    """The shipped schema called `name`; raises UserError that lists them all."""
    if name not in SHIPPED:
        raise UserError(
            f"unknown attribute schema {name!r}{nearest(name, SHIPPED)}; "
            f"shipped: {', '.join(SHIPPED)}, or write your own record"
        )
    return SHIPPED[name]


def _schema(name: str, high: int, described: dict[str, tuple[str, int, str]]) -> AttributeSchema:
    attributes = [
        Attribute.model_validate({"name": n, "high": high, "better": better, "default": default, "meaning": meaning})
        for n, (better, default, meaning) in described.items()
    ]
    return AttributeSchema(name=name, attributes=tuple(attributes))


# The sentences below are part of the schema's fingerprint: a reworded one is another schema.
# HelpSteer, arXiv 2311.09528 section 3. Defaults: SteerLM's best settings in HelpSteer2, 2406.08673
# (complexity 2, verbosity 2 beat 4, 4).
_HELPSTEER = {
    "helpfulness": ("higher", 4, "How well the answer helps with what was asked."),
    "correctness": ("higher", 4, "Facts are right, complete and to the point."),
    "coherence": ("higher", 4, "The answer is consistent and clear."),
    "complexity": ("neither", 2, "How much expertise the wording assumes."),
    "verbosity": ("neither", 2, "How long the answer is for what was asked."),
}
# Open Assistant, arXiv 2304.07327; the four that HelpSteer section 4 adds, in NeMo-Aligner's order.
_OASST = {
    "quality": ("higher", 4, "Overall quality as people judge it."),
    "toxicity": ("lower", 0, "Rude, insulting or harmful content."),
    "humor": ("neither", 0, "How funny the answer is."),
    "creativity": ("neither", 0, "How inventive the answer is."),
}
# SteerLM, arXiv 2310.05344 section 4: seven attributes on 0..9.
_PAPER = {
    "quality": ("higher", 9, "Overall quality as people judge it."),
    "toxicity": ("lower", 0, "Rude, insulting or harmful content."),
    "humor": ("neither", 0, "How funny the answer is."),
    "creativity": ("neither", 0, "How inventive the answer is."),
    "violence": ("lower", 0, "Encourages or describes violence."),
    "helpfulness": ("higher", 9, "How well the answer helps with what was asked."),
    "not_appropriate": ("lower", 0, "Not suitable for a customer assistant."),
}
# What an instruction-tuned model follows without training, when it is asked in words. The last sentence of a request
# counts most, so the attribute that such a model follows best is last.
_STYLE = {
    "creativity": ("neither", 0, "How inventive the answer is."),
    "humor": ("neither", 0, "How funny the answer is."),
    "complexity": ("neither", 2, "How much schooling the wording asks of its reader."),
    "verbosity": ("neither", 2, "How long the answer is."),
}
_LAB = {
    "helpfulness": ("higher", 4, "True facts about the subject that was asked about, less the false ones."),
    "creativity": ("neither", 0, "Images: sentences that paint the subject as something else."),
    "humor": ("neither", 0, "Jokes in the answer."),
    "toxicity": ("lower", 0, "Insults in the answer."),
    "verbosity": ("neither", 1, "Plain filler sentences that say nothing."),
}

SHIPPED = {
    schema.name: schema
    for schema in (
        _schema("helpsteer", 4, _HELPSTEER),
        _schema("steerlm", 4, _OASST | _HELPSTEER),
        _schema("steerlm_paper", 9, _PAPER),
        _schema("oasst", 4, _OASST | {"helpfulness": _HELPSTEER["helpfulness"]}),
        _schema("style", 4, _STYLE),
        _schema("lab", 4, _LAB),
    )
}
