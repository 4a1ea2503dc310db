"""What a caller requests of an answer, wherever a client could put it: one value for each attribute, and its source.

The body's `attributes` come first, then `metadata`, the answer to continue, the header, the model's name and OpenAI's
dials. Knows no HTTP and no policy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.attributes import AttributeProblem, AttributeSchema
from serve import dials
from serve.chat_request import AttributeValues, ChatRequest
from serve.profiles import Profile, resolve
from serve.protocol import ProtocolError

HEADER = "X-SteerLM-Attributes"
BODY = "attributes"
FORM = "humor=4,verbosity=1"
NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


@dataclass(frozen=True)
class Channel:
    """One of the places, with what stood there."""

    where: str
    """The field, for errors and replies."""
    values: AttributeValues


@dataclass(frozen=True)
class Requested:
    """The values of a request."""

    values: dict[str, float]
    """In schema order."""
    sources: dict[str, str]
    """Attribute -> where its value stood, unless that is the body's `attributes`."""
    effective: dict[str, int]
    """Of every attribute, after the profile's and the schema's defaults."""


def assignments(text: str, where: str) -> AttributeValues:
    """`text` as attribute -> number; raises ProtocolError that names `where`.

    >>> assignments("humor=4, verbosity=0.5", "model")
    {'humor': 4, 'verbosity': 0.5}
    """
    values: AttributeValues = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, number = map(str.strip, part.partition("="))
        if not (name and equals) or name in values:
            wrong = "names an attribute twice" if name in values else f"holds {part[:60]!r}"
            raise ProtocolError(f"{where} {wrong}; allowed: attributes as in {FORM}", where, "invalid_attribute")
        values[name[:60]] = _number(number)
    return values


def _number(text: str) -> int | float | str:
    """Text that is no number is left to the schema, which quotes it with what is allowed."""
    if not NUMBER.fullmatch(text):
        return text[:60]
    return float(text) if "." in text else int(text)


def channels(chat: ChatRequest, model_attributes: str, header: str) -> Sequence[Channel]:
    """All places but the dials, the one that counts most last; raises ProtocolError for text that is none."""
    in_metadata = "metadata.attributes"
    of_metadata = (chat.metadata and chat.metadata.attributes) or ""
    begun = chat.labels_of(chat.begun) if chat.begun else []
    return (
        Channel("model", assignments(model_attributes, "model")),
        Channel(HEADER, assignments(header, HEADER)),
        *(Channel(where, values) for where, values in begun),
        Channel(in_metadata, assignments(of_metadata, in_metadata)),
        Channel(BODY, chat.attributes),
    )


def requested(
    schema: AttributeSchema, profile: Profile | None, places: Sequence[Channel], settings: Mapping[str, str]
) -> Requested:
    """The values of a request; `settings`: dial -> its setting. Raises ProtocolError that names field and range."""
    values, sources = _of_dials(schema, profile, settings)
    for place in places:
        try:
            checked = schema.checked(place.values)
        except AttributeProblem as problem:
            raise wrong_attribute(place.where, problem) from None
        values |= checked
        sources |= dict.fromkeys(checked, place.where)
    try:
        effective = resolve(schema, profile, values)
    except AttributeProblem as problem:
        raise wrong_attribute(sources[problem.attribute], problem) from None
    elsewhere = {name: where for name, where in sources.items() if where != BODY}
    return Requested({name: values[name] for name in schema.names if name in values}, elsewhere, effective)


def wrong_attribute(where: str, problem: AttributeProblem) -> ProtocolError:
    """The refusal of an attribute that stood at `where`."""
    param = f"{where}.{problem.attribute}" if where.endswith(BODY) and where != "metadata.attributes" else where
    return ProtocolError(f"{where}: {problem}", param, "invalid_attribute")


def _of_dials(
    schema: AttributeSchema, profile: Profile | None, settings: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    values, sources = dict[str, float](), dict[str, str]()
    for dial, setting in settings.items():
        attribute = dials.attribute_of(schema, dial)
        if attribute is not None:
            values[attribute.name] = float(dials.value_at(attribute, profile, dial, setting))
            sources[attribute.name] = dial
        elif setting not in dials.NEUTRAL[dial]:
            wrong = f"{dial} is {setting!r}, and schema {schema.name!r} has no attribute of this meaning"
            raise ProtocolError(f"{wrong}: leave it out", dial, "unsupported_parameter")
    return values, sources
