"""The prompts of a policy with the attributes requested, as rows for Ray Data, and the plan of a bootstrap round.

Knows no model. Source of the plan: SteerLM (arXiv 2310.05344) section 3.4. Names and their order decide ids and seeds.
"""

import hashlib
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from data.attributes import Attribute, AttributeSchema, Values
from data.conversation import Conversation, Message
from data.errors import UserError

T = TypeVar("T")
PROMPT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("system", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("names", pa.list_(pa.string())),
        ("requested", pa.list_(pa.float32())),
        ("seed", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user turn, and the values requested of its answer. `seed` is this row's alone."""

    id: str
    source: str
    group: str
    system: str
    messages: tuple[Message, ...]
    requested: Values
    seed: int


def prompt(
    source: str, group: str, system: str, messages: Sequence[Message], requested: Values, number: int, seed: int
) -> Prompt:
    """A prompt whose id and sampling seed follow from its content; `number` separates samples of one prompt."""
    text = repr(
        (source, group, system, [(m.role, m.content) for m in messages], sorted(requested.items()), number, seed)
    )
    digest = hashlib.sha256(text.encode()).digest()
    return Prompt(
        digest.hex()[:32], source, group, system, tuple(messages), requested, int.from_bytes(digest[-6:], "big")
    )


def prompts_table(prompts: Iterable[Prompt]) -> pa.Table:
    rows = [
        {
            **{name: getattr(p, name) for name in ("id", "source", "group", "system", "seed")},
            "messages": [{"role": m.role, "content": m.content} for m in p.messages],
            "names": list(p.requested),
            "requested": list(p.requested.values()),
        }
        for p in prompts
    ]
    return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)


def prompts_from(table: pa.Table) -> Iterator[Prompt]:
    for row in table.to_pylist():
        yield Prompt(
            messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
            requested=dict(zip(row["names"], row["requested"], strict=True)),
            **{name: row[name] for name in ("id", "source", "group", "system", "seed")},
        )


def combinations(
    values: Iterable[Values], schema: AttributeSchema, leading: str, min_count: int = 1, at_least: int | None = None
) -> list[dict[str, int]]:
    """V of the paper: the attribute combinations seen where `leading` is best (or `at_least` so good). Sorted.

    Values are rounded as in a prompt; combinations seen fewer than `min_count` times are left out. With `min_count` 0
    those never seen count too, of values each seen somewhere. Raises UserError if none is left, with the count.
    """
    return combinations_of(combination_counts(values, schema), schema, leading, min_count, at_least)


def combination_counts(values: Iterable[Values], schema: AttributeSchema) -> Counter[tuple[int, ...]]:
    """How often each combination of rounded values was seen, in the schema's order; answers that lack one are left out.

    Counts of parts of the rows add up to those of all.
    """
    whole = (value for value in values if all(name in value for name in schema.names))
    return Counter(tuple(a.rounded(value[a.name]) for a in schema.attributes) for value in whole)


def combinations_of(
    seen: Mapping[tuple[int, ...], int],
    schema: AttributeSchema,
    leading: str,
    min_count: int = 1,
    at_least: int | None = None,
) -> list[dict[str, int]]:
    """`combinations` of what was counted."""
    lead, place = schema[leading], schema.names.index(leading)
    bound = lead.best if at_least is None else at_least

    def good(value: int) -> bool:
        return value <= bound if lead.better == "lower" else value >= bound

    counts = Counter({combination: n for combination, n in seen.items() if good(combination[place])})
    scales = {name: {combination[i] for combination in seen} for i, name in enumerate(schema.names)}
    if min_count:
        found = sorted(combination for combination, n in counts.items() if n >= min_count)
    else:
        found = list(
            itertools.product(*(sorted(v for v in scales[name] if name != leading or good(v)) for name in schema.names))
        )
    if not found:
        raise UserError(
            f"no attribute combination with {leading} at {bound} was seen {min_count} times in the annotated rows "
            f"({counts.total()} answers have it at all); lower bootstrap.min_count or set bootstrap.leading_at_least"
        )
    return [dict(zip(schema.names, combination, strict=True)) for combination in found]


def bootstrap_source(number: int) -> str:
    """The source of the rows that bootstrap round `number`, from 1 on, samples."""
    return f"bootstrap-{number}"


Question = tuple[str, str, tuple[Message, ...]]
"""Group, system text, and the messages before an answer."""


def last_questions(rows: Iterable[Conversation]) -> Iterator[Question]:
    """What each row's last answer answers."""
    return ((row.group, row.system, row.messages[:-1]) for row in rows)


def drawn_questions(questions: Iterable[Question], num_prompts: int, seed: int) -> list[Question]:
    """`num_prompts` of them; of those drawn from parts of the rows, the ones that are drawn from all rows."""
    return drawn(questions, num_prompts, f"bootstrap/{seed}")


def bootstrap_prompts(
    picked: Iterable[Question],
    requested: Sequence[Mapping[str, int]],
    samples_per_prompt: int,
    seed: int,
    source: str,
) -> list[Prompt]:
    """Each question of `drawn_questions` `samples_per_prompt` times, each at one of `requested`."""
    rng = random.Random(f"bootstrap/{seed}")
    return [
        prompt(source, group, system, messages, rng.choice(requested), number, seed)
        for group, system, messages in picked
        for number in range(samples_per_prompt)
    ]


def drawn(things: Iterable[T], most: int, seed: str, name: Callable[[T], str] = repr) -> list[T]:
    """`most` different `things`, drawn by their `name` and `seed`, whatever their order. Holds no more.

    Two things with one name are the same. The name of a row is its id: its `repr` has the predictor's fingerprint,
    which a renamed setting changes.
    """
    held: list[tuple[int, str]] = []
    chosen: dict[str, T] = {}
    for thing in things:
        text = name(thing)
        key = (-int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8], "big"), text)
        if text in chosen or (len(held) >= most and key <= held[0]):
            continue
        chosen[text] = thing
        heapq.heappush(held, key)
        if len(held) > most:
            del chosen[heapq.heappop(held)[1]]
    return [chosen[text] for _, text in sorted(held, reverse=True)]


BEST = "best"
"""The group of prompts that request all attributes at best."""
COMBINED = "combined"
"""The group of prompts that vary several attributes at once."""
DIALOGUE = "dialogue/"
"""Before an attribute's name: the group of prompts that change it in mid-conversation."""


def steering_prompts(
    questions: Sequence[Sequence[Message]],
    schema: AttributeSchema,
    others: Values,
    seed: int,
    source: str,
    num_values: int = 0,
) -> list[Prompt]:
    """For each question: every steerable attribute at values of its scale, and all attributes at best.

    `group` names the attribute that varies, or is BEST. The others are as in `others`, or not requested. `num_values`:
    see `spread_values`.
    """
    settings: list[tuple[str, Values]] = [(BEST, dict(schema.best()))]
    for attribute in schema.attributes:
        if attribute.steerable:
            values = spread_values(attribute, num_values)
            settings += [(attribute.name, {**others, attribute.name: v}) for v in values]
    return requested_prompts(questions, settings, seed, source)


def spread_values(attribute: Attribute, number: int) -> list[int]:
    """So many values of a scale, evenly spread from end to end; 0 or more than it has: all. 0 to 4 and 3: 0, 2, 4."""
    span = attribute.high - attribute.low
    if not 1 < number <= span:
        return list(range(attribute.low, attribute.high + 1))
    return [attribute.low + round(i * span / (number - 1)) for i in range(number)]


def requested_prompts(
    questions: Sequence[Sequence[Message]], settings: Sequence[tuple[str, Values]], seed: int, source: str
) -> list[Prompt]:
    """Each question at each of the `settings`, pairs of a group's name and the requested values."""
    return [
        prompt(source, group, "", messages, values, n, seed)
        for n, messages in enumerate(questions)
        for group, values in settings
    ]


def combined_settings(schema: AttributeSchema, others: Values, most: int, seed: int) -> list[Values]:
    """`most` different settings of all steerable attributes at once, drawn uniformly; the rest as in `others`.

    A larger `most` continues the list. A single steerable attribute has none: it is varied alone anyway.
    """
    steerable = [a for a in schema.attributes if a.steerable]
    there_are = math.prod(a.high - a.low + 1 for a in steerable) if len(steerable) > 1 else 0
    rng = random.Random(f"combined/{seed}")
    found: dict[tuple[int, ...], Values] = {}
    while len(found) < min(most, there_are):
        values = {a.name: rng.randint(a.low, a.high) for a in steerable}
        found.setdefault(tuple(values.values()), {**others, **values})
    return list(found.values())


def dialogue_prompts(
    answers: Iterable[Conversation],
    questions: Sequence[Sequence[Message]],
    schema: AttributeSchema,
    others: Values,
    most: int,
    seed: int,
    source: str,
) -> list[Prompt]:
    """The `answers` to the first `most` questions with an attribute at one end, each followed by the next question.

    The next question has that attribute at the other end.
    """
    answered = {(row.group, row.requested[-1].get(row.group), row.messages[:-1]): row.messages for row in answers}
    found = []
    for number, first in enumerate(questions[:most]):
        following = questions[(number + 1) % len(questions)]
        for a in (a for a in schema.attributes if a.steerable):
            for before, after in ((a.low, a.high), (a.high, a.low)):
                messages = (*answered[a.name, before, tuple(first)], *following)
                values = {**others, a.name: after}
                found.append(prompt(source, f"{DIALOGUE}{a.name}", "", messages, values, number, seed))
    return found
