"""A judge's verdicts: read from its replies, or from stored judgements, ours or FastChat's.

Knows no endpoint and adds nothing up (`data.comparisons` does). An unreadable reply is a verdict with a problem.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data.benchmarks import QuestionId, question_id, record, records, text_field
from data.judge_prompts import Kind, Match
from data.lines import BadRecord, Line

Winner = Literal["first", "second", "tie"]
WINNERS: dict[str, Winner] = {"A": "first", "B": "second", "C": "tie"}
UNPARSABLE = "unparsable"
"""The problem of a reply that holds no verdict."""
FASTCHAT_ERROR = "$ERROR$"
"""What FastChat stores where the judge's API failed."""
_MARK = re.compile(r"\[\[([ABC])\]\]")
_RATING, _PLAIN_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]"), re.compile(r"\[(\d+(?:\.\d+)?)\]")
LOWEST, HIGHEST = 1, 10


@dataclass(frozen=True)
class Verdict:
    """The verdict on one answer, or on two in one order: exactly one of `winner`, `rating` and `problem` is set."""

    kind: Kind
    question_id: QuestionId
    category: str
    turn: int
    models: tuple[str, ...]
    """In the order in which the judge saw them."""
    judge: str
    winner: Winner | None = None
    rating: float | None = None
    problem: str = ""
    """Why there is no verdict: "unparsable", or what went wrong with the request."""


def winner_in(reply: str) -> Winner | None:
    """The last [[A]], [[B]] or [[C]]: the prompt wants the verdict last. (FastChat takes any [[A]] before any [[B]].)

    "Not [[A]], so: [[B]]" -> "second".
    """
    found = _MARK.findall(reply)
    return WINNERS[found[-1]] if found else None


def rating_in(reply: str) -> float | None:
    """The last [[7]], else the last [7], from 1 to 10."""
    found = _RATING.findall(reply) or _PLAIN_RATING.findall(reply)
    rating = float(found[-1]) if found else 0.0
    return rating if LOWEST <= rating <= HIGHEST else None


def verdict(match: Match, judge: str, reply: str | None, error: str = "") -> Verdict:
    """What became of a match: the judge's `reply`, or the `error` that there was instead."""
    about = (match.kind, match.question_id, match.category, match.turn, match.models, judge)
    return _read(about, reply, error)


def _read(about: tuple[Kind, QuestionId, str, int, tuple[str, ...], str], reply: str | None, error: str) -> Verdict:
    if reply is None:
        return Verdict(*about, problem=error or "no reply")
    if about[0] == "pair":
        winner = winner_in(reply)
        return Verdict(*about, winner=winner, problem="" if winner else UNPARSABLE)
    rating = rating_in(reply)
    return Verdict(*about, rating=rating, problem="" if rating else UNPARSABLE)


def judgement_line(match: Match, judge: str, key: str, reply: str | None, error: str) -> dict[str, Any]:
    """A line of our own format: what was judged, and the judge's own words, from which the verdict is read again."""
    about = {
        "kind": match.kind,
        "question_id": match.question_id,
        "category": match.category,
        "turn": match.turn,
        "models": list(match.models),
    }
    return about | {"judge": [judge, match.prompt_name], "key": key, "reply": reply, "error": error}


def read_verdicts(uri: str, categories: Mapping[QuestionId, str]) -> list[Verdict]:
    """Stored judgements: our `judgements.jsonl`, or FastChat's model_judgment files, whose categories are looked up."""
    return [found for line in records(uri) for found in _stored(line, categories)]


def _stored(line: Line, categories: Mapping[QuestionId, str]) -> Iterator[Verdict]:
    yield from record(line, lambda r: _ours(r) if "kind" in r else _fastchat(r, categories))


def _ours(stored: Mapping[str, Any]) -> list[Verdict]:
    kind, models, reply = stored.get("kind"), stored.get("models"), stored.get("reply")
    if kind not in ("pair", "single") or not isinstance(models, list) or len(models) != (2 if kind == "pair" else 1):
        raise BadRecord("wrong_type", f"kind is {kind!r} and models {models!r}; a pair has two models, a single one")
    if not (reply is None or isinstance(reply, str)):
        raise BadRecord("wrong_type", f"reply is {reply!r}; it is a text or null")
    category, names = str(stored.get("category", "")), tuple(map(str, models))
    about = (kind, question_id(stored), category, _turn(stored), names, _judge(stored))
    return [_read(about, reply, str(stored.get("error", "")))]


def _fastchat(stored: Mapping[str, Any], categories: Mapping[QuestionId, str]) -> list[Verdict]:
    """FastChat's own winners and scores, not a second reading of the replies: its published numbers come out."""
    id = question_id(stored)
    category, turn, judge = categories.get(id, ""), _turn(stored), _judge(stored)
    if "g1_winner" in stored and "g2_winner" in stored:
        one, other = text_field(stored, "model_1"), text_field(stored, "model_2")
        orders = (("g1", (one, other), ("model_1", "model_2")), ("g2", (other, one), ("model_2", "model_1")))
        return [_game(stored, order, (id, category, turn, models, judge), places) for order, models, places in orders]
    if "score" in stored:
        score = stored["score"]
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise BadRecord("wrong_type", f"score is {score!r}; it is a number")
        about = (id, category, turn, (text_field(stored, "model"),), judge)
        if LOWEST <= score <= HIGHEST:
            return [Verdict("single", *about, rating=float(score))]
        return [Verdict("single", *about, problem=_problem(stored.get("judgment")))]
    raise BadRecord(
        "unknown_record", "the line is no judgement: ours has kind, FastChat's has g1_winner and g2_winner, or score"
    )


def _game(
    stored: Mapping[str, Any],
    order: str,
    about: tuple[QuestionId, str, int, tuple[str, str], str],
    places: tuple[str, str],
) -> Verdict:
    found = stored[f"{order}_winner"]
    winners: dict[str, Winner] = {places[0]: "first", places[1]: "second", "tie": "tie"}
    if found not in (*winners, "error"):
        raise BadRecord("wrong_type", f"{order}_winner is {found!r}; it is model_1, model_2, tie or error")
    problem = "" if found in winners else _problem(stored.get(f"{order}_judgment"))
    return Verdict("pair", *about, winner=winners.get(found), problem=problem)


def _problem(reply: object) -> str:
    return "error" if reply == FASTCHAT_ERROR else UNPARSABLE


def _turn(stored: Mapping[str, Any]) -> int:
    turn = stored.get("turn", 1)
    if turn not in (1, 2):
        raise BadRecord("wrong_type", f"turn is {turn!r}; it is 1 or 2")
    return int(turn)


def _judge(stored: Mapping[str, Any]) -> str:
    """The model that judged; beside it stands the name of the prompt."""
    judge = stored.get("judge")
    return str(judge[0]) if isinstance(judge, list) and judge else str(judge or "")
