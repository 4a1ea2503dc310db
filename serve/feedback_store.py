"""Texts of answers and people's ratings of them, on any storage; each a whole file, written once or replaced.

    STORE/TEAM/_answers/DAY/ID.json        an answer's conversation, while it waits for ratings
    STORE/TEAM/DAY/ID/CHOICE.RATER.jsonl   one rating, with its text: a row of format `messages`

A source of `rows` passes by names that begin with "_", so it reads the ratings alone. Team, day and id decide a file's
path, and whoever deletes goes by the path: what is not ours stays. Knows no HTTP, no key and no Ray.
"""

import contextlib
import json
import os
import posixpath
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from data.attributes import AttributeSchema, Values
from data.bounds import Whole
from data.conversation import Conversation, Message, content_id, problem
from data.errors import UserError
from data.formats import to_messages
from data.lines import MAX_MESSAGES
from data.printable import printable
from data.record import Record
from data.storage import Storage
from data.uris import kept_uri, shown_uri
from serve.answer_ids import begun_s, day_of, is_id

ANSWERS = "_answers"
SOURCE = "feedback"
TEAM, DAY = re.compile(r"[a-z][a-z0-9_-]*"), re.compile(r"\d{4}-\d{2}-\d{2}")
UNFINISHED = r"(\.[0-9a-f]{8}\.tmp)?"
"""What a process leaves that is killed while it writes."""
ANSWER_FILE = re.compile(rf"(?P<id>[^./]+)\.json{UNFINISHED}")
RATING_FILE = re.compile(rf"(?P<id>[^./]+)/[0-9]+\.[0-9a-f]{{16}}\.jsonl{UNFINISHED}")
DAY_S, MINUTE_S = 86_400, 60

KeptFolder = Annotated[str, Field(min_length=1), AfterValidator(lambda uri: Storage(kept_uri(uri)).uri)]
"""A local one with its whole path: the ingress may run in another folder."""


class FeedbackSettings(Record):
    """People's ratings of answers, kept as rows for a next run."""

    store: KeptFolder | None = None
    """Folder (any URI) for texts of answers and their ratings; null = no feedback, and no text is kept. All nodes with
    an ingress must share it."""
    answers_minutes: Whole = Field(24 * 60, ge=1, le=10**7)
    """How long the text of an answer waits for ratings, in minutes from its beginning."""
    retention_days: Whole = Field(90, ge=1, le=36_500)
    """How long a rating is kept, with its text, in days from the beginning of the answer."""

    @model_validator(mode="after")
    def _ordered(self) -> "FeedbackSettings":
        if self.answers_s > self.retention_s:
            days = f"retention_days {self.retention_days}"
            raise UserError(f"answers_minutes is {self.answers_minutes}, longer than {days}: lower it, or raise that")
        return self

    @property
    def answers_s(self) -> int:
        return self.answers_minutes * MINUTE_S

    @property
    def retention_s(self) -> int:
        return self.retention_days * DAY_S


class KeptMessage(Record):
    """One turn."""

    role: str
    content: str


class KeptAnswer(Record):
    """What must be known of an answer when somebody rates it."""

    id: str
    team: str
    model: str
    policy: str
    """The checkpoint that answered."""
    attribute_schema: AttributeSchema
    requested: dict[str, float]
    effective: dict[str, int]
    system: str
    messages: tuple[KeptMessage, ...]
    """Without the answer."""
    choices: tuple[str, ...]
    """The answers to them, as the reply had them."""

    def turns(self, choice: int) -> tuple[Message, ...]:
        """With one of the answers at the end."""
        turns = (Message(m.role, m.content) for m in self.messages)
        return (*turns, Message("assistant", self.choices[choice]))

    def rated(self, choice: int, values: Values) -> Conversation:
        """A row with people's values of that answer; earlier ones are not rated."""
        messages = self.turns(choice)
        earlier: tuple[Values, ...] = ({},) * (sum(m.role == "assistant" for m in messages) - 1)
        group = content_id("", "", messages[:1])
        return Conversation(SOURCE, self.system, messages, human=(*earlier, values), group=group)

    def is_row(self, choice: int) -> bool:
        """Could it be a row of a run? An empty answer cannot, nor a conversation that an assistant opened."""
        messages = self.turns(choice)
        return len(messages) <= MAX_MESSAGES and not problem(messages)


def rating_row(answer: KeptAnswer, choice: int, values: Values, rater: str, now_s: float) -> dict[str, object]:
    """A rating as a record of format `messages`, with where it came from."""
    schema = answer.attribute_schema
    return to_messages(answer.rated(choice, values), schema) | {
        "scales": {a.name: [a.low, a.high] for a in schema.attributes},
        "feedback": {
            "answer": answer.id,
            "team": answer.team,
            "rater": rater,
            "model": answer.model,
            "policy": answer.policy,
            "answered": _moment(begun_s(answer.id)),
            "rated": _moment(now_s),
            "requested": answer.requested,
            "effective": answer.effective,
        },
    }


class FeedbackStore:
    """The files below one folder."""

    def __init__(self, uri: str):
        self._root = Storage(uri)

    def require_writable(self) -> None:
        """Raises UserError if a file cannot be written there and removed."""
        file = self._root / f".check-{secrets.token_hex(8)}"
        try:
            file.write_bytes(b"")
            file.remove()
        except Exception as error:  # each storage has its own: botocore's are no OSError
            cause = f"{type(error).__name__}: {printable(str(error), 120)}"
            remedy = "set it to a folder or a bucket that the endpoint may write to"
            raise UserError(f"feedback.store {shown_uri(self._root.uri)} cannot be used ({cause}): {remedy}") from None

    def put_answer(self, answer: KeptAnswer) -> None:
        self._answer_file(answer.team, answer.id).write_bytes(answer.model_dump_json().encode())

    def answer(self, team: str, id: str) -> KeptAnswer | None:
        """None if it is not kept: never, no longer, or for another team."""
        if not is_id(id):
            return None
        try:
            return KeptAnswer.model_validate_json(self._answer_file(team, id).read_text())
        except FileNotFoundError:
            return None

    def put_rating(self, answer: KeptAnswer, choice: int, values: Values, rater: str, now_s: float) -> bool:
        """Replaces the rater's earlier rating of it. False if the answer was deleted meanwhile: then so is this."""
        line = json.dumps(rating_row(answer, choice, values, rater, now_s), ensure_ascii=False) + "\n"
        file = self._ratings(answer.team, answer.id) / f"{choice}.{rater}.jsonl"
        file.write_bytes(line.encode())
        if self._answer_file(answer.team, answer.id).exists():
            return True
        self.delete(answer.team, answer.id)  # who deletes takes the text first: then one of us two sees the other
        return False

    def delete(self, team: str, id: str) -> tuple[int, int]:
        """Removes an answer's text and its ratings; how many of each there were."""
        if not is_id(id):
            return 0, 0
        text, folder = self._answer_file(team, id), self._ratings(team, id)
        num_texts = int(text.exists())
        (self._root / team / ANSWERS / day_of(begun_s(id))).remove_files([f"{id}.json"])
        names = [name for name in _names(folder) if RATING_FILE.fullmatch(f"{id}/{name}")]
        folder.remove_files(names)
        if folder.is_local:
            _remove_empty(folder.path)
        return num_texts, sum(name.endswith(".jsonl") for name in names)

    def delete_all(self, team: str) -> tuple[int, int]:
        """The same for all of a team's."""
        return self._expire_answers(team, None), self._expire_ratings(team, None)

    def sweep(self, settings: FeedbackSettings, now_s: float) -> tuple[int, int]:
        """Removes the texts and ratings of all teams, former ones too, that are kept long enough; how many."""
        teams = [name for name in _folders(self._root) if TEAM.fullmatch(name)]
        texts = [self._expire_answers(team, now_s - settings.answers_s) for team in teams]
        return sum(texts), sum(self._expire_ratings(team, now_s - settings.retention_s) for team in teams)

    def _expire_answers(self, team: str, until_s: float | None) -> int:
        return _expire(self._root / team / ANSWERS, ANSWER_FILE, until_s)

    def _expire_ratings(self, team: str, until_s: float | None) -> int:
        return _expire(self._root / team, RATING_FILE, until_s)

    def _answer_file(self, team: str, id: str) -> Storage:
        return self._root / team / ANSWERS / day_of(begun_s(id)) / f"{id}.json"

    def _ratings(self, team: str, id: str) -> Storage:
        return self._root / team / day_of(begun_s(id)) / id


def _expire(folder: Storage, pattern: re.Pattern[str], until_s: float | None) -> int:
    """Removes our files of answers begun at `until_s` or before it, None = all; days after it are not listed."""
    last = None if until_s is None else day_of(max(0, until_s))
    num = 0
    for day in _folders(folder):
        if not DAY.fullmatch(day) or (last is not None and day > last):
            continue
        names = list(_expired(_names(folder / day), pattern, day, until_s))
        _remove(folder / day, names)
        if folder.is_local and day < day_of(time.time() - DAY_S):  # nothing is written there any more
            _remove_empty((folder / day).path)
        num += sum(not name.endswith(".tmp") for name in names)
    return num


def _expired(names: Iterable[str], pattern: re.Pattern[str], day: str, until_s: float | None) -> Iterator[str]:
    for name in names:
        found = pattern.fullmatch(name)
        if found is None or not is_id(found["id"]) or day_of(begun_s(found["id"])) != day:
            continue
        if until_s is None or begun_s(found["id"]) <= until_s:
            yield name


def _names(folder: Storage) -> list[str]:
    """Of all files below it."""
    folder.fs.invalidate_cache()  # another process writes there too
    return folder.names()


def _folders(folder: Storage) -> list[str]:
    """Names of the folders in it."""
    fs = folder.fs
    fs.invalidate_cache()
    try:
        entries = fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory")


def _remove(folder: Storage, names: Iterable[str]) -> None:
    """These files, and on a disk the folders of single answers that are empty without them."""
    names = list(names)
    folder.remove_files(names)
    if folder.is_local:
        for name in {posixpath.dirname(name) for name in names} - {""}:
            _remove_empty(posixpath.join(folder.path, name))


def _remove_empty(folder: str) -> None:
    with contextlib.suppress(OSError):  # not empty, or not there
        os.rmdir(folder)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
