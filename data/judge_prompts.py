"""The prompts of a judge (FastChat's judge_prompts.jsonl by path, or ours), and the matches of questions and answers.

Knows no endpoint and reads no verdict (`data.verdicts`). Source: MT-bench (arXiv 2306.05685) and its code in FastChat.
"""

import hashlib
import itertools
import json
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from data.benchmarks import ModelAnswers, Question, QuestionId, record, records, text_field
from data.errors import UserError
from data.lines import BadRecord
from data.plain_text import BREAK

Kind = Literal["pair", "single"]
HEADING = re.compile(r"\[[^\[\]]+\]$|<\|.+\|>$|#+ .+:$")
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories that are judged beside a reference answer, as in FastChat."""


@dataclass(frozen=True)
class JudgePrompt:
    """A system text, and a template for what the judge is shown."""

    name: str
    system: str
    template: str

    @property
    def fields(self) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None}

    def shown(self, values: Mapping[str, str]) -> str:
        """What the judge is shown. A text that has a heading of this template gets a break in it: it is no heading."""
        plain = {name: self._headings.sub(lambda m: m[0][0] + BREAK + m[0][1:], text) for name, text in values.items()}
        return self.template.format(**plain)

    @cached_property
    def _headings(self) -> re.Pattern[str]:
        """The lines around texts, such as [End of Assistant A's answer], in any case and spacing."""
        constants = (literal for literal, _, _, _ in string.Formatter().parse(self.template))
        lines = {line.strip() for literal in constants for line in literal.splitlines() if HEADING.match(line.strip())}
        longest = sorted(lines, key=lambda line: (-len(line), line))
        return re.compile("|".join(r"\s+".join(map(re.escape, line.split())) for line in longest) or "(?!)", re.I)


@dataclass(frozen=True)
class Match:
    """One request to a judge: to rate a model's answer, or to choose between two in the order shown."""

    kind: Kind
    question_id: QuestionId
    category: str
    turn: int
    """1, or 2 for the answer to the second question in the light of the first."""
    models: tuple[str, ...]
    """In the order in which the judge sees them."""
    prompt_name: str
    system: str
    prompt: str

    def key(self, judge: str, options: Mapping[str, Any]) -> str:
        """32 hex digits of all that decides the judge's reply: equal matches are judged once."""
        text = json.dumps([judge, self.system, self.prompt, options], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def prompt_name(kind: Kind, turn: int, with_reference: bool) -> str:
    """FastChat's name of the prompt: pair-v2, single-math-v1-multi-turn and so on."""
    base = "math-v1" if with_reference else "v2" if kind == "pair" else "v1"
    return f"{kind}-{base}{'-multi-turn' if turn == 2 else ''}"


NAMES = tuple(
    prompt_name(kind, turn, reference) for kind in ("pair", "single") for turn in (1, 2) for reference in (False, True)
)


def read_judge_prompts(uri: str) -> dict[str, JudgePrompt]:
    """The eight prompts that are used, by name, from `uri`. Raises UserError for a missing one, or an unknown field."""
    found = {p.name: p for p in (record(line, _judge_prompt) for line in records(uri))}
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise UserError(
            f"{uri} has no prompt {', '.join(missing)}; take FastChat's judge_prompts.jsonl, "
            "or leave `prompts` empty for those that come with us"
        )
    return {name: found[name] for name in NAMES}


def _judge_prompt(record: Mapping[str, Any]) -> JudgePrompt:
    system = record.get("system_prompt")
    if not isinstance(system, str):
        raise BadRecord("wrong_type", f"system_prompt is {system!r}; it is a text")
    prompt = JudgePrompt(text_field(record, "name"), system, text_field(record, "prompt_template"))
    if prompt.name in NAMES:
        try:
            unknown = prompt.fields - _fields(prompt.name)
        except ValueError as error:
            raise BadRecord("broken_template", f"prompt_template of {prompt.name}: {error}") from None
        if unknown:
            raise BadRecord(
                "unknown_field",
                f"{prompt.name} has {{{min(unknown)}}}; there are {', '.join(sorted(_fields(prompt.name)))}",
            )
    return prompt


def _fields(name: str) -> set[str]:
    """What a template of this name may hold."""
    sides = ("answer_a", "answer_b") if name.startswith("pair") else ("answer",)
    turns = ("_1", "_2") if name.endswith("-multi-turn") else ("",)
    references = {"ref_answer_1", "ref_answer_2"} if "-math-" in name else set()
    return {f"{what}{turn}" for what in ("question", *sides) for turn in turns} | references


@dataclass(frozen=True)
class Setup:
    """Whose answers to which questions are judged, and how."""

    questions: Sequence[Question]
    answers: Sequence[ModelAnswers]
    references: ModelAnswers | None
    prompts: Mapping[str, JudgePrompt]
    kinds: Collection[Kind]
    against: str | None = None
    """Pairs with this model only; None = all pairs."""

    def matches(self) -> Iterator[Match]:
        """Every question and turn: each model's answer alone, and each pair in both orders."""
        for question in self.questions:
            for turn in range(1, min(len(question.turns), 2) + 1):
                if "single" in self.kinds:
                    yield from (self._match("single", question, turn, (one,)) for one in self.answers)
                if "pair" in self.kinds:
                    for one, other in itertools.combinations(self.answers, 2):
                        if self.against in (None, one.model, other.model):
                            yield self._match("pair", question, turn, (one, other))
                            yield self._match("pair", question, turn, (other, one))

    def without_reference(self) -> list[QuestionId]:
        """Questions of a category that wants a reference answer, and has none: they are judged as all others."""
        return [q.id for q in self.questions if q.category in WITH_REFERENCE and not self._reference(q)]

    def _reference(self, question: Question) -> tuple[str, ...]:
        if not self.references or question.category not in WITH_REFERENCE:
            return ()
        found = self.references.turns.get(question.id, ())
        return found if len(found) >= len(question.turns) else ()

    def _match(self, kind: Kind, question: Question, turn: int, answers: Sequence[ModelAnswers]) -> Match:
        reference = self._reference(question)
        prompt = self.prompts[prompt_name(kind, turn, bool(reference))]
        values = {f"ref_answer_{n}": text for n, text in enumerate(reference, 1)} | {
            "ref_answer_2": reference[-1] if reference else ""
        }
        values |= _numbered("question", question.turns)
        for name, side in zip(("answer_a", "answer_b") if kind == "pair" else ("answer",), answers, strict=True):
            values |= _numbered(name, side.of(question))
        text = prompt.shown(values)
        models = tuple(a.model for a in answers)
        return Match(kind, question.id, question.category, turn, models, prompt.name, prompt.system, text)


def _numbered(name: str, turns: Sequence[str]) -> dict[str, str]:
    """`question` is the first turn's, `question_1` and `question_2` both turns'."""
    return {name: turns[0]} | {f"{name}_{n}": text for n, text in enumerate(turns, 1)}


# --- ours, to the same effect as FastChat's; part of a match's key, so that a reworded prompt is judged again ---------

_FAIR = (
    "The order in which the answers are shown, their length and the names of the assistants must not sway you. "
    "Explain your view briefly first. Then end with the verdict, in exactly this form: [[A]] if assistant A is better, "
    "[[B]] if assistant B is better, [[C]] if neither is."
)
_RATE = (
    "Explain your view briefly first. Then end with a rating from 1 (worst) to 10 (best), in exactly this form: "
    "[[rating]], for example: Rating: [[5]]. Be as objective as you can."
)
_GENERAL = "Judge how helpful, relevant, accurate, deep, creative and detailed"
_EXACT = (
    "A reference answer is given. Compare with it first, and name the mistakes you find. Judge how correct and helpful"
)


def _shipped(kind: Kind, turn: int, with_reference: bool) -> JudgePrompt:
    criterion, second = _EXACT if with_reference else _GENERAL, " to the second question" if turn == 2 else ""
    impartial = "You are an impartial judge of"
    if kind == "pair":
        system = (
            f"{impartial} two AI assistants, A and B, who answered the same user. "
            f"{criterion} their answers{second} are, and how well they do what was asked. {_FAIR}"
        )
        sides = [("Assistant A", "answer_a"), ("Assistant B", "answer_b")]
    else:
        system = f"{impartial} an AI assistant's answer to a user. {criterion} the answer{second} is. {_RATE}"
        sides = [("The assistant", "answer")]
    shown = ([("Reference", "ref_answer")] if with_reference else []) + sides
    if turn == 1:
        blocks = ["[Question]\n{question}"]
        blocks += [
            f"[{who}'s answer]\n{{{field + ('_1' if field == 'ref_answer' else '')}}}\n[End of {who}'s answer]"
            for who, field in shown
        ]
    else:
        talk = (
            "### User:\n{{question_1}}\n\n### {who}:\n{{{field}_1}}\n\n"
            "### User:\n{{question_2}}\n\n### {who}:\n{{{field}_2}}"
        )
        blocks = [
            f"[{who}'s conversation]\n\n{talk.format(who=who, field=field)}\n\n[End of {who}'s conversation]"
            for who, field in shown
        ]
    return JudgePrompt(prompt_name(kind, turn, with_reference), system, "\n\n".join(blocks))


SHIPPED = {
    p.name: p
    for p in (
        _shipped(kind, turn, reference) for kind in ("pair", "single") for turn in (1, 2) for reference in (False, True)
    )
}
