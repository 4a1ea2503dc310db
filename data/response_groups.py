"""Groups of SteerLM 2.0: a prompt, the setting asked of it, and answers to it with three log-probabilities each.

As rows for Ray Data, and as NeMo-Aligner's SteerLM2 JSONL (`SteerLM2Dataset`), which is read and written. Knows no
model. Source: HelpSteer2 (arXiv 2406.08673), section 4.5.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from data.attribute_likelihood import log_target
from data.attributes import AttributeSchema, Values
from data.benchmarks import record, records
from data.conversation import Message, content_id, problem
from data.errors import UserError
from data.formats import label_values
from data.lines import BadRecord, column, optional_text, ratings, text, typed
from data.printable import printable
from data.prompts import Prompt, Question, prompt
from data.template import LABEL_START, label_line

LOG_LABELS, LOG_FREE, LOG_POLICY = "log(P(a|x,y))", "log(P(y|x))", "log(Q(y|a,x))"
"""NeMo-Aligner's names."""
ROLES = {"User": "user", "Assistant": "assistant"}
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
LOGARITHMS = ("log_labels", "log_free", "log_policy")
RESPONSE = pa.struct([("text", pa.string()), *((name, pa.float64()) for name in LOGARITHMS)])
GROUP_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "source", "group", "system")),
        ("messages", pa.list_(MESSAGE)),
        ("names", pa.list_(pa.string())),
        ("requested", pa.list_(pa.float32())),
        ("responses", pa.list_(RESPONSE)),
    ]
)


@dataclass(frozen=True)
class Response:
    """An answer, with log-probabilities in nats: sums over its tokens, not over their number."""

    text: str
    log_labels: float
    """log P(a|x,y): of the requested values, by the predictor."""
    log_free: float
    """log P(y|x): of the answer, by a policy that is asked for nothing."""
    log_policy: float
    """log Q'(y|a,x): of the answer, by the policy that wrote it."""


@dataclass(frozen=True)
class ResponseGroup:
    """All answers to one prompt at one setting."""

    id: str
    source: str
    group: str
    """What must not be split between training and validation."""
    system: str
    messages: tuple[Message, ...]
    """Up to the user's turn that is answered."""
    requested: Values
    responses: tuple[Response, ...]

    @cached_property
    def log_target(self) -> np.ndarray:
        """log w' of each response."""
        return log_target(*([getattr(r, name) for r in self.responses] for name in LOGARITHMS))

    @property
    def earlier_labels(self) -> tuple[Values, ...]:
        """Earlier answers were written before anything was asked."""
        return ({},) * sum(m.role == "assistant" for m in self.messages)


def response_group(
    source: str,
    group: str,
    system: str,
    messages: Sequence[Message],
    requested: Values,
    responses: Sequence[Response],
) -> ResponseGroup:
    """A group whose id follows from its content."""
    answers = [Message("assistant", response.text) for response in responses]
    digest = content_id(source, repr((system, sorted(requested.items()))), [*messages, *answers])
    return ResponseGroup(digest, source, group, system, tuple(messages), requested, tuple(responses))


def groups_table(groups: Iterable[ResponseGroup]) -> pa.Table:
    rows = [
        {
            **{name: getattr(g, name) for name in ("id", "source", "group", "system")},
            "messages": [vars(m) for m in g.messages],
            "names": list(g.requested),
            "requested": list(g.requested.values()),
            "responses": [vars(r) for r in g.responses],
        }
        for g in groups
    ]
    return pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)


def groups_from(table: pa.Table) -> Iterator[ResponseGroup]:
    for row in table.to_pylist():
        yield ResponseGroup(
            **{name: row[name] for name in ("id", "source", "group", "system")},
            messages=tuple(Message(**m) for m in row["messages"]),
            requested=dict(zip(row["names"], row["requested"], strict=True)),
            responses=tuple(Response(**r) for r in row["responses"]),
        )


def group_prompts(
    picked: Iterable[Question],
    requested: Sequence[Mapping[str, float]],
    samples_per_prompt: int,
    seed: int,
    source: str,
) -> list[Prompt]:
    """Each question of `drawn_questions` `samples_per_prompt` times, all at the same one of `requested`."""
    found = []
    for group, system, messages in picked:
        text = repr((seed, system, [(m.role, m.content) for m in messages]))
        number = int.from_bytes(hashlib.sha256(f"steerlm2/{text}".encode()).digest()[:8], "big")
        values = requested[number % len(requested)]
        found += [prompt(source, group, system, messages, values, n, seed) for n in range(samples_per_prompt)]
    return found


# --- NeMo-Aligner's SteerLM2 JSONL ------------------------------------------------------------------------------------


def to_steerlm2(group: ResponseGroup, schema: AttributeSchema) -> dict[str, Any]:
    """NeMo-Aligner's record; requested values are rounded, as in a label line."""
    return {
        "system": group.system,
        "prompt_turns": [{"from": m.role.capitalize(), "value": m.content} for m in group.messages],
        "label": label_line(schema, group.requested).removeprefix(LABEL_START).rstrip("\n"),
        "responses": [
            {
                "from": "Assistant",
                "value": r.text,
                LOG_LABELS: r.log_labels,
                LOG_FREE: r.log_free,
                LOG_POLICY: r.log_policy,
            }
            for r in group.responses
        ],
    }


def read_steerlm2(uri: str, schema: AttributeSchema, source: str) -> Iterator[ResponseGroup]:
    """The groups of the files at `uri`; raises UserError, naming file and line, for the first record that is none.

    All must have as many responses as the first.
    """
    size = 0
    for line in records(uri):
        group = record(line, lambda found: _group(found, schema, source))
        size = size or len(group.responses)
        if len(group.responses) != size:
            raise UserError(
                f"{line.file}, line {line.number}: {len(group.responses)} responses, but the first prompt has {size}; "
                "give all prompts the same number"
            )
        yield group


def _group(found: Mapping[str, Any], schema: AttributeSchema, source: str) -> ResponseGroup:
    turns = [typed(turn, dict, "a turn") for turn in typed(column(found, "prompt_turns"), list, "prompt_turns")]
    messages = [Message(_role(turn), text(turn, "value")) for turn in turns]
    answers = [typed(answer, dict, "a response") for answer in typed(column(found, "responses"), list, "responses")]
    if len(answers) < 2:
        raise BadRecord("too_few", f"{len(answers)} responses; weights among them need two or more")
    responses = [_response(answer, messages) for answer in answers]
    requested = ratings(label_values(text(found, "label")), schema)
    if not requested:
        raise BadRecord("unlabelled", f"label has none of the attributes {', '.join(schema.names)}")
    group = content_id("", "", messages[:1])
    return response_group(source, group, optional_text(found, "system"), messages, requested, responses)


def _response(answer: Mapping[str, Any], messages: Sequence[Message]) -> Response:
    if _role(answer) != "assistant":
        raise BadRecord("unknown_role", "a response is from Assistant")
    value = text(answer, "value")
    if reason := problem((*messages, Message("assistant", value))):
        raise BadRecord(reason, f"prompt_turns and a response make no conversation ({reason})")
    return Response(value, *(_logarithm(answer, name) for name in (LOG_LABELS, LOG_FREE, LOG_POLICY)))


def _logarithm(answer: Mapping[str, Any], name: str) -> float:
    value = column(answer, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 0:
        shown = printable(repr(value), 40)
        raise BadRecord("wrong_type", f"{name} is {shown}; it is the logarithm of a probability, 0 or below")
    return float(value)


def _role(turn: Mapping[str, Any]) -> str:
    name = text(turn, "from")
    if name not in ROLES:
        raise BadRecord("unknown_role", f"a turn is from {printable(name, 20)!r}; it is from User or Assistant")
    return ROLES[name]
