"""What a record says where no reader looks for it: no rating, mask or scale is lost without a word. Knows no format.

A rating counts as said by its name, an attribute's, with a number; null is none.
"""

from collections.abc import Collection, Mapping
from typing import Any

from data.attributes import AttributeSchema
from data.lines import BadRecord, misspelled
from data.printable import printable

WHERE = "ratings stand in `attributes` of an assistant message, or of the record for its last answer"


def require_no_ratings(record: Mapping[str, Any], schema: AttributeSchema, read: Collection[str], where: str) -> None:
    """Raises BadRecord "misplaced_attributes" if a column outside `read` is a rating, or an object that holds one."""
    for name, value in record.items():
        if name in read:
            continue
        if isinstance(value, dict):
            if inside := next((key for key in value if _is_rating(key, value[key], schema)), None):
                _refuse(f"{where} has a rating {printable(inside)!r} in {printable(name)!r}")
        elif _is_rating(name, value, schema):
            _refuse(f"{where} has a rating {printable(name)!r}")


def require_unrated(values: Any, where: str) -> None:
    """Raises BadRecord "misplaced_attributes" if the `attributes` of what is no answer hold a value."""
    if isinstance(values, dict) and not all(value is None or value != value for value in values.values()):
        _refuse(f"`attributes` of {where} rate no answer")


def require_trained(record: Mapping[str, Any]) -> None:
    """Raises BadRecord for a `weight` other than 1: an answer that is not meant for training, or only in part."""
    weight = record.get("weight")
    if weight is None or weight == 1:
        return
    if weight == 0:
        raise BadRecord(
            "answers_masked",
            "an answer with `weight` 0 is not meant for training, a row's answers all are: cut it off or drop `weight`",
        )
    raise BadRecord("wrong_type", f"`weight` is {printable(str(weight), 20)}, it must be 1, or 0 (which is rejected)")


def require_scales(record: Mapping[str, Any], schema: AttributeSchema) -> None:
    """Raises BadRecord "other_scale" if `scales` ({name: [low, high]}) has another range of an attribute."""
    scales = record.get("scales")
    if not isinstance(scales, dict):
        return
    for attribute in schema.attributes:
        rated, ours = scales.get(attribute.name), [attribute.low, attribute.high]
        if isinstance(rated, list) and rated != ours:
            shown = printable(f"{attribute.name!r} was rated on the scale {rated}, it has {ours} in this run")
            raise BadRecord("other_scale", f"{shown}; set `attributes` to the schema of the ratings")


def _is_rating(name: str, value: Any, schema: AttributeSchema) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value == value
        and (name in schema.names or bool(misspelled(name, schema.names)))
    )


def _refuse(what: str) -> None:
    raise BadRecord("misplaced_attributes", f"{what}; {WHERE}")
