"""Pairs of conversations of which people preferred one: `chosen` and `rejected` columns of any file of `data.lines`.

A side is hh-rlhf text ("\\n\\nHuman: ...\\n\\nAssistant: ...") or a list of messages. With a `prompt` (text or
messages) it may be the answer alone, as in TRL; a `subset`, as in RewardBench, is kept. Knows no Ray and no model.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected
from data.errors import UserError
from data.formats import hh_rlhf, messages
from data.lines import BadRecord, Line, Row, column, numbered, optional_text, text
from data.sources import Parser

_HH_ROLES = ("Human:", "Assistant:")


@dataclass(frozen=True)
class Pair:
    """Two conversations that end in an answer; people preferred `chosen`'s."""

    chosen: Conversation
    rejected: Conversation
    subset: str = ""


def pair_weights(
    schema: AttributeSchema,
    given: Mapping[str, float],
    setting: str = "predictor.pair_weights",
    unpredicted: Collection[str] = (),
) -> dict[str, float]:
    """The weight of every attribute in the one score of an answer: as `given`, others 0.

    If none is given: +1/n where higher is better, -1/n where lower is, 0 where neither; n attributes have a better end.
    Attributes that the predictor does not rate, `unpredicted`, weigh nothing.

    Raises AttributeProblem for a name that the schema does not have, UserError if all weights are 0 or if one is given
    to an unpredicted attribute.
    """
    signs = {a.name: {"higher": 1.0, "lower": -1.0, "neither": 0.0}[a.better] for a in schema.attributes}
    signs |= dict.fromkeys(unpredicted, 0.0)
    if wrong := [name for name in unpredicted if given.get(name)]:
        raise UserError(
            f"{setting} weighs {', '.join(wrong)}, but annotate.raters takes these from others, and pairs are "
            "judged by the predictor alone; take them out of one of the two"
        )
    num_directed = sum(map(abs, signs.values()))
    weights = {name: sign / max(1.0, num_directed) for name, sign in signs.items()}
    if given:
        weights = dict.fromkeys(schema.names, 0.0) | {
            schema[name].name: float(weight) for name, weight in given.items()
        }
    if not any(weights.values()):
        raise UserError(
            f"{setting} leaves every attribute of schema {schema.name!r} at weight 0, so that all pairs would tie; "
            f"give at least one of {', '.join(schema.names)} a weight"
        )
    return weights


def read_pairs(uri: str, schema: AttributeSchema, source: str, limit: int = 0) -> Iterator[Pair | Rejected]:
    """The pairs of the file, folder or glob at `uri`, in order, streamed; a pair with a broken side is one Rejected.

    Both sides have ids made from `source` and the pair's number, and one group. `limit` counts pairs without the
    rejected ones; 0 means all. Raises FileNotFoundError for a `uri` with nothing there.
    """
    return numbered(uri, lambda line, number: _pair(line, schema, source, number), limit)


def _pair(line: Line, schema: AttributeSchema, source: str, number: int) -> Pair | Rejected:
    sides = []
    for name in ("chosen", "rejected"):
        try:
            subset = optional_text(line.record, "subset")
            side = _side(line, name, schema, source)
        except BadRecord as bad:
            side = bad.at(line)
        if isinstance(side, Rejected):
            return replace(side, detail=f"{name}: {side.detail}")
        sides.append(side)
    if sides[0].id == sides[1].id:
        return Rejected(
            line.file, line.number, "equal_sides", "chosen and rejected are the same conversation, so neither can win"
        )
    # A side's content may come again in another pair; where it stands does not.
    group = f"{source}-{number:09d}"
    chosen, rejected = (
        replace(side, id=f"{group}-{name}", group=group)
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    )
    return Pair(chosen, rejected, subset)


def _side(line: Line, name: str, schema: AttributeSchema, source: str) -> Row:
    """The conversation of one column; raises BadRecord."""
    side, prompt = column(line.record, name), line.record.get("prompt")

    def parsed(parse: Parser, **record: Any) -> Row:
        return next(parse(replace(line, record=record), schema, source))

    if isinstance(side, list):
        whole = prompt is None or _starts_conversation(side)
        return parsed(messages, messages=side if whole else [*_as_messages(prompt), *side])
    side = text(line.record, name)
    if prompt is None or _is_dialogue(side):
        return parsed(hh_rlhf, text=side)
    if _is_dialogue(prompt):
        return parsed(hh_rlhf, text=prompt + side)
    return parsed(messages, prompt=prompt, response=side)


def _starts_conversation(turns: list[Any]) -> bool:
    """True for a whole conversation, False for an answer that needs its prompt."""
    return bool(turns) and isinstance(turns[0], dict) and turns[0].get("role") != "assistant"


def _is_dialogue(side: Any) -> bool:
    return isinstance(side, str) and side.lstrip().startswith(_HH_ROLES)


def _as_messages(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
