"""The public formats that hold whole conversations: one record in, its conversations out; and two of them written.

Each function parses one record; a bad one raises BadRecord. Knows no files (`data.lines`), no trees (`data.trees`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, Message
from data.lines import (
    MAX_MESSAGES,
    BadRecord,
    Line,
    Row,
    column,
    optional_text,
    ratings,
    row,
    text,
    too_many_messages,
    typed,
)
from data.printable import printable
from data.template import LABEL_START, TURN_START, label_line
from data.unread import require_no_ratings, require_scales, require_trained, require_unrated

Which = Literal["human", "predicted"]
"""Whose values a writer writes."""
Turns = tuple[Message, ...]

HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALE = (0, 4)
"""Likert 5, arXiv 2311.09528 section 3."""

# HelpSteer2 writes the earlier turns of a conversation into `prompt` with NeMo's turn markers.
_TURN = re.compile(rf"\n?{re.escape(TURN_START)}(User|Assistant)\n")
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_ROLES = {"User": "user", "Assistant": "assistant", "Human": "user", "human": "user", "gpt": "assistant"}
_OURS = frozenset({"id", "source", "group", "system", "role", "content", "name", "weight", "attributes"})
_PROMPT_COLUMNS = _OURS | {"prompt", "response", "messages"}

SAMPLER_DEBRIS = (
    *[
        "</s>",
        "<s>",
        "<pad>",
        "<unk>",
        "<|endoftext|>",
        "<|padding|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|end_of_text|>",
        "<|eot_id|>",
    ],
    *["<|prompter|>", "<|assistant|>", "<|system|>", "<|prefix_begin|>", "<|prefix_end|>"],
)
"""Special tokens at the end of a sampled answer: sampling stopped there. The last line is Open Assistant's."""


def helpsteer(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """HelpSteer and HelpSteer2: `prompt`, `response` and five ratings of the response."""
    require_no_ratings(line.record, schema, HELPSTEER_ATTRIBUTES, "the record")
    messages = _with_answer(_marked_turns(text(line.record, "prompt")), text(line.record, "response"))
    rated = {name: column(line.record, name) for name in HELPSTEER_ATTRIBUTES if name in schema.names}
    yield row(line, source, messages, _last_rated(messages, ratings(rated, schema, HELPSTEER_SCALE)))


def helpsteer_preference(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """HelpSteer2's pairs: `prompt`, `response_1`, `response_2`; which one people preferred is no rating."""
    require_no_ratings(line.record, schema, (), "the record")
    prompt = _marked_turns(text(line.record, "prompt"))
    for answer in (text(line.record, "response_1"), text(line.record, "response_2")):
        yield row(line, source, _with_answer(prompt, answer))


def helpsteer3(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """HelpSteer3's pairs: `context` (a list of messages, or a text), `response1`, `response2`."""
    require_no_ratings(line.record, schema, (), "the record")
    system, prompt, earlier = _prompt(column(line.record, "context"), schema)
    for answer in (text(line.record, "response1"), text(line.record, "response2")):
        yield row(line, source, _with_answer(prompt, answer), (*earlier, {}), system)


def hh_rlhf(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """Dialogues "\\n\\nHuman: ...\\n\\nAssistant: ..." in `chosen` and `rejected`, or `text`; they share a group."""
    require_no_ratings(line.record, schema, (), "the record")
    names = [name for name in ("chosen", "rejected", "text") if name in line.record]
    if not names:
        column(line.record, "chosen")
    for dialogue in [text(line.record, name) for name in names]:
        before, *parts = _HH_TURN.split(dialogue)
        if before.strip():
            yield BadRecord(
                "text_before_first_turn", f'the dialogue starts with "{printable(before, 40)}", not with "Human:"'
            ).at(line)
        else:
            yield row(line, source, _turns(parts))


def messages(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """The OpenAI and TRL convention: `messages` of role and content, or `prompt` and `response`.

    A system message may come first. An assistant message may carry `attributes`, people's ratings in schema units;
    those of the record rate the last answer. The record may have a `group`, and `scales`, the schema's. A `weight` of 0
    (OpenAI) rejects it.
    """
    record = line.record
    require_no_ratings(record, schema, _PROMPT_COLUMNS, "the record")
    require_trained(record)
    require_scales(record, schema)
    if "messages" in record:
        system, turns, human = _chat(record["messages"], schema)
        human = _with_record(human, _attributes(record, schema))
    elif "conversations" in record and "prompt" not in record:
        raise BadRecord(
            "missing_column", "no column 'messages'; `conversations` (ShareGPT, NeMo) is read by format nemo"
        )
    else:
        system, prompt, earlier = _prompt(column(record, "prompt"), schema, marked=False)
        turns = _with_answer(prompt, text(record, "response"))
        human = (*earlier, _attributes(record, schema))
    yield row(line, source, turns, human, system, optional_text(record, "group"))


def prompt_output(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """Samples of a model: `prompt` and `output`, without the special tokens that sampling left at the output's end."""
    require_no_ratings(line.record, schema, (), "the record")
    prompt = (Message("user", text(line.record, "prompt")),)
    yield row(line, source, _with_answer(prompt, without_debris(text(line.record, "output"))))


def nemo(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """NeMo-Aligner: `conversations`, and `system`, `mask`, `type`; `group` as in `messages`.

    A turn has from, value and label ("name:value,name:value", null or ""). ShareGPT's turns are the same without a
    label: from is human, gpt or, in the first one, system.
    """
    record = line.record
    require_no_ratings(record, schema, ("system", "mask", "type"), "the record")
    if "Assistant" in [role.strip() for role in optional_text(record, "mask").split(",")]:
        raise BadRecord("answers_masked", "`mask` names Assistant, so these answers are not meant for training")
    said = _objects(column(record, "conversations"), "conversations", "a turn")
    system = optional_text(record, "system")
    if said and said[0].get("from") == "system" and not system:
        system, said = text(said[0], "value"), said[1:]
    turns, human = [], []
    for turn in said:
        speaker = text(turn, "from")
        turns.append(Message(_ROLES.get(speaker, speaker), text(turn, "value")))
        require_no_ratings(turn, schema, (), "a turn")
        values = label_values(optional_text(turn, "label"))
        if turns[-1].role == "assistant":
            human.append(ratings(values, schema))
            require_trained(turn)
        else:
            require_unrated(values, f"the {printable(speaker, 20)}'s turn")
    yield row(line, source, turns, human, system, optional_text(record, "group"))


def to_nemo(conversation: Conversation, schema: AttributeSchema, which: Which = "human") -> dict[str, Any]:
    """The conversation as NeMo-Aligner's record, values rounded, label null where nothing is rated.

    The columns `id`, `source` and `group` are ours; NeMo-Aligner ignores them.
    """
    turns = []
    for message, values in _with_values(conversation, which):
        label = label_line(schema, values).removeprefix(LABEL_START).rstrip("\n") or None
        turns.append({"from": message.role.capitalize(), "value": message.content, "label": label})
    record = {"system": conversation.system, "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns}
    return record | _origin(conversation)


def to_messages(conversation: Conversation, schema: AttributeSchema, which: Which = "human") -> dict[str, Any]:
    """The conversation as `messages` reads it; values are raw, so that reading it gives the very same ratings.

    All messages and all `attributes` have the same keys, null where nothing is rated: Hugging Face `datasets` takes
    objects of different keys for free-form JSON, and its parser of that rounds.
    """
    turns: list[dict[str, Any]] = (
        [{"role": "system", "content": conversation.system, "attributes": None}] if conversation.system else []
    )
    for message, values in _with_values(conversation, which):
        attributes = {name: values.get(name) for name in schema.names} if values else None
        turns.append({"role": message.role, "content": message.content, "attributes": attributes})
    return _origin(conversation) | {"messages": turns}


def _origin(conversation: Conversation) -> dict[str, str]:
    return {"id": conversation.id, "source": conversation.source, "group": conversation.group}


def label_values(label: str) -> dict[str, float]:
    """`"quality:4,humor:0"` -> `{"quality": 4.0, "humor": 0.0}`."""
    values: dict[str, float] = {}
    for entry in filter(None, label.split(",")):
        name, _, value = entry.partition(":")
        name = name.strip()
        if name in values:
            raise BadRecord("duplicate_key", f"label has {printable(name)!r} twice, one value would be lost")
        try:
            values[name] = float(value)
        except ValueError:
            shown = printable(entry, 40)
            raise BadRecord("broken_label", f"label has {shown!r}, an entry is name:number") from None
    return values


def without_debris(answer: str) -> str:
    """`answer`, trimmed, with no special token left at its end: " Yes.</s></s>" -> "Yes."."""
    # A loop, not a regular expression: "(token|space)+ at the end" takes quadratic time on a long run of spaces.
    answer = answer.strip()
    while token := next((t for t in SAMPLER_DEBRIS if answer.endswith(t)), ""):
        answer = answer.removesuffix(token).rstrip()
    return answer


def _turns(parts: Sequence[str]) -> Turns:
    """`["User", "Hi", "Assistant", "Yes?"]` -> two messages."""
    return tuple(Message(_ROLES[role], content) for role, content in zip(parts[::2], parts[1::2], strict=True))


def _marked_turns(prompt: str) -> Turns:
    """`Hi\\n<extra_id_1>Assistant\\nYes?\\n<extra_id_1>User\\nWhy?` -> three messages; the first marker is optional."""
    first, *parts = _TURN.split(prompt)
    return _turns(parts) if parts and not first else (Message("user", first), *_turns(parts))


def _with_answer(prompt: Turns, answer: str) -> Turns:
    return (*prompt, Message("assistant", answer))


def _last_rated(messages: Turns, values: Values) -> list[Values]:
    """`values` for the last answer, nothing for those before."""
    earlier: list[Values] = [{}] * (sum(m.role == "assistant" for m in messages) - 1)
    return [*earlier, values]


def _prompt(prompt: Any, schema: AttributeSchema, marked: bool = True) -> tuple[str, Turns, tuple[Values, ...]]:
    """System text, turns and the ratings of the answers among them; a prompt is a text or a list of messages."""
    if isinstance(prompt, list):
        return _chat(prompt, schema)
    prompt = text({"prompt": prompt}, "prompt")
    turns = _marked_turns(prompt) if marked else (Message("user", prompt),)
    return "", turns, ({},) * sum(m.role == "assistant" for m in turns)


def _chat(turns: Any, schema: AttributeSchema) -> tuple[str, Turns, tuple[Values, ...]]:
    """System text, messages, and the ratings of each assistant message."""
    turns = _objects(turns, "messages", "a message")
    for turn in turns:
        if not turn.keys() <= _OURS:
            require_no_ratings(turn, schema, _OURS, "a message")
        if turn.get("role") == "assistant":
            require_trained(turn)
        else:
            require_unrated(turn.get("attributes"), "a message that is no assistant's")
    system = ""
    if turns and turns[0].get("role") == "system":
        system, turns = text(turns[0], "content"), turns[1:]
    human = tuple(_attributes(turn, schema) for turn in turns if turn.get("role") == "assistant")
    return system, tuple(Message(_role(turn), text(turn, "content")) for turn in turns), human


def _objects(turns: Any, name: str, each: str) -> list[dict[str, Any]]:
    """The turns of a conversation; their number is asked first, so that very many cost no more than their parsing."""
    if len(typed(turns, list, name)) > MAX_MESSAGES:
        raise too_many_messages(len(turns))
    return [typed(turn, dict, each) for turn in turns]


def _role(turn: Mapping[str, Any]) -> str:
    if "role" not in turn and "from" in turn:
        raise BadRecord("missing_column", "a message has `from`: turns of ShareGPT or NeMo are read by format nemo")
    return text(turn, "role")


def _with_record(human: tuple[Values, ...], values: Values) -> tuple[Values, ...]:
    """The record's ratings are the last answer's, which must have none of its own."""
    if not values or not human:
        return human
    if human[-1]:
        raise BadRecord(
            "misplaced_attributes", "both the record and its last answer have `attributes`; leave one of them out"
        )
    return (*human[:-1], values)


def _attributes(record: Mapping[str, Any], schema: AttributeSchema) -> Values:
    values = record.get("attributes")
    return {} if values is None else ratings(typed(values, dict, "attributes"), schema)


def _with_values(conversation: Conversation, which: Which) -> list[tuple[Message, Values]]:
    """Each message with its answer's values, without NaN, which no JSON has: {} for user turns and unrated answers."""
    answers: Iterator[Values] = iter(getattr(conversation, which) or ({},) * conversation.num_answers)
    found = [(m, next(answers) if m.role == "assistant" else {}) for m in conversation.messages]
    return [(m, {name: value for name, value in values.items() if not math.isnan(value)}) for m, values in found]
