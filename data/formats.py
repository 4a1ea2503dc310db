"""The public formats that hold whole conversations: one record in, its conversations out; and two of them written.

Each function parses one record; a bad one raises BadRecord. Knows no files (`data.lines`), no trees (`data.trees`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, Message
from data.lines import BadRecord, Line, Row, column, optional_text, ratings, row, text, typed
from data.template import LABEL_START, TURN_START, label_line

Which = Literal["human", "predicted"]
"""Whose values a writer writes."""
Turns = tuple[Message, ...]

HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALE = (0, 4)
"""Likert 5, arXiv 2311.09528 section 3."""

# HelpSteer2 writes the earlier turns of a conversation into `prompt` with NeMo's turn markers.
_TURN = re.compile(rf"\n?{re.escape(TURN_START)}(User|Assistant)\n")
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_ROLES = {"User": "user", "Assistant": "assistant", "Human": "user"}

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
    messages = _with_answer(_marked_turns(text(line.record, "prompt")), text(line.record, "response"))
    rated = {name: column(line.record, name) for name in HELPSTEER_ATTRIBUTES if name in schema.names}
    yield row(line, source, messages, _last_rated(messages, ratings(rated, schema, HELPSTEER_SCALE)))


def helpsteer_preference(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """HelpSteer2's pairs: `prompt`, `response_1`, `response_2`; which one people preferred is no rating."""
    prompt = _marked_turns(text(line.record, "prompt"))
    for answer in (text(line.record, "response_1"), text(line.record, "response_2")):
        yield row(line, source, _with_answer(prompt, answer))


def helpsteer3(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """HelpSteer3's pairs: `context` (a list of messages, or a text), `response1`, `response2`."""
    system, prompt, _ = _prompt(column(line.record, "context"), schema)
    for answer in (text(line.record, "response1"), text(line.record, "response2")):
        yield row(line, source, _with_answer(prompt, answer), system=system)


def hh_rlhf(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """Dialogues "\\n\\nHuman: ...\\n\\nAssistant: ..." in `chosen` and `rejected`, or `text`; they share a group."""
    names = [name for name in ("chosen", "rejected", "text") if name in line.record]
    if not names:
        column(line.record, "chosen")
    for dialogue in [text(line.record, name) for name in names]:
        before, *parts = _HH_TURN.split(dialogue)
        if before.strip():
            yield BadRecord(
                "text_before_first_turn", f'the dialogue starts with {before[:40]!r}, not with "Human:"'
            ).at(line)
        else:
            yield row(line, source, _turns(parts))


def messages(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """The OpenAI and TRL convention: `messages` of role and content, or `prompt` and `response`.

    A system message may come first. An assistant message (or the record, beside `response`) may carry `attributes`,
    people's ratings in schema units; the record may carry a `group`.
    """
    record = line.record
    if "messages" in record:
        system, turns, human = _chat(record["messages"], schema)
    else:
        system, prompt, earlier = _prompt(column(record, "prompt"), schema, marked=False)
        turns = _with_answer(prompt, text(record, "response"))
        human = (*earlier, _attributes(record, schema))
    yield row(line, source, turns, human, system, optional_text(record, "group"))


def prompt_output(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """Samples of a model: `prompt` and `output`, without the special tokens that sampling left at the output's end."""
    prompt = (Message("user", text(line.record, "prompt")),)
    yield row(line, source, _with_answer(prompt, without_debris(text(line.record, "output"))))


def nemo(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """NeMo-Aligner: `conversations`, and `system`, `mask`, `type`; `group` as in `messages`.

    A turn has from, value and label ("name:value,name:value", null or "").
    """
    if "Assistant" in [role.strip() for role in optional_text(line.record, "mask").split(",")]:
        raise BadRecord("answers_masked", "`mask` names Assistant, so these answers are not meant for training")
    turns, human = [], []
    for turn in typed(column(line.record, "conversations"), list, "conversations"):
        turn = typed(turn, dict, "a turn")
        speaker = text(turn, "from")
        turns.append(Message(_ROLES.get(speaker, speaker), text(turn, "value")))
        if turns[-1].role == "assistant":
            human.append(ratings(_label(optional_text(turn, "label")), schema))
    yield row(line, source, turns, human, optional_text(line.record, "system"), optional_text(line.record, "group"))


def to_nemo(conversation: Conversation, schema: AttributeSchema, which: Which = "human") -> dict[str, Any]:
    """The conversation as NeMo-Aligner's record, values rounded, label null where nothing is rated.

    The columns `id`, `source` and `group` are ours; NeMo-Aligner ignores them.
    """
    turns = []
    for message, values in _with_values(conversation, which):
        label = label_line(schema, values).removeprefix(LABEL_START).rstrip("\n") or None
        turns.append({"from": message.role.capitalize(), "value": message.content, "label": label})
    return {"system": conversation.system, "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns} | _origin(
        conversation
    )


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
    turns = [typed(turn, dict, "a message") for turn in typed(turns, list, "messages")]
    system = ""
    if turns and turns[0].get("role") == "system":
        system, turns = text(turns[0], "content"), turns[1:]
    human = tuple(_attributes(turn, schema) for turn in turns if turn.get("role") == "assistant")
    return system, tuple(Message(text(turn, "role"), text(turn, "content")) for turn in turns), human


def _attributes(record: Mapping[str, Any], schema: AttributeSchema) -> Values:
    values = record.get("attributes")
    return {} if values is None else ratings(typed(values, dict, "attributes"), schema)


def _label(label: str) -> dict[str, float]:
    """`"quality:4,humor:0"` -> `{"quality": 4.0, "humor": 0.0}`."""
    values = {}
    for entry in filter(None, label.split(",")):
        name, _, value = entry.partition(":")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise BadRecord(
                "broken_label", f"label {label[:80]!r} has {entry[:40]!r}, an entry is name:number"
            ) from None
    return values


def _with_values(conversation: Conversation, which: Which) -> list[tuple[Message, Values]]:
    """Each message with its answer's values, without NaN, which no JSON has: {} for user turns and unrated answers."""
    answers: Iterator[Values] = iter(getattr(conversation, which) or ({},) * conversation.num_answers)
    found = [(m, next(answers) if m.role == "assistant" else {}) for m in conversation.messages]
    return [(m, {name: value for name, value in values.items() if not math.isnan(value)}) for m, values in found]
