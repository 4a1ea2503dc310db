"""Texts of answers and people's ratings of them, on any storage; each a whole file, written once or replaced.

    STORE/TEAM/_answers/DAY/ID.json        an answer's conversation, while it waits for ratings
    STORE/TEAM/DAY/ID/CHOICE.RATER.jsonl   one rating, with its text: a row of format `messages`

A source of `rows` passes by names that begin with "_", so it reads the ratings alone. Team, day and id decide a file's
path, and whoever deletes goes by the path: what is not ours stays. Knows no HTTP, no key and no Ray.
"""

import json
import re

from pydantic import Field, model_validator

from data.attributes import AttributeSchema, Values
from data.bounds import Whole
from data.conversation import Conversation, Message, content_id, problem
from data.errors import UserError
from data.formats import to_messages
from data.lines import MAX_MESSAGES
from data.record import Record
from data.storage import Storage
from serve.answer_ids import begun_s, day_of, is_id
from serve.dated_files import (
    DAY_S,
    UNFINISHED,
    BegunAt,
    KeptFolder,
    expire,
    files_below,
    folders_in,
    moment,
    remove_empty,
    require_writable,
)

ANSWERS = "_answers"
SOURCE = "feedback"
TEAM = re.compile(r"[a-z][a-z0-9_-]*")
ANSWER_FILE = re.compile(rf"(?P<id>[^./]+)\.json{UNFINISHED}")
RATING_FILE = re.compile(rf"(?P<id>[^./]+)/[0-9]+\.[0-9a-f]{{16}}\.jsonl{UNFINISHED}")
MINUTE_S = 60


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
            "answered": moment(begun_s(answer.id)),
            "rated": moment(now_s),
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
        require_writable(self._root, "feedback.store")

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
        found = [name for name in files_below(folder) if RATING_FILE.fullmatch(f"{id}/{name}")]
        folder.remove_files(found)
        if folder.is_local:
            remove_empty(folder.path)
        return num_texts, sum(name.endswith(".jsonl") for name in found)

    def delete_all(self, team: str) -> tuple[int, int]:
        """The same for all of a team's."""
        return self._expire_answers(team, None), self._expire_ratings(team, None)

    def sweep(self, settings: FeedbackSettings, now_s: float) -> tuple[int, int]:
        """Removes the texts and ratings of all teams, former ones too, that are kept long enough; how many."""
        teams = [name for name in folders_in(self._root) if TEAM.fullmatch(name)]
        texts = [self._expire_answers(team, now_s - settings.answers_s) for team in teams]
        return sum(texts), sum(self._expire_ratings(team, now_s - settings.retention_s) for team in teams)

    def _expire_answers(self, team: str, until_s: float | None) -> int:
        return expire(self._root / team / ANSWERS, ANSWER_BEGUN, until_s)

    def _expire_ratings(self, team: str, until_s: float | None) -> int:
        return expire(self._root / team, RATING_BEGUN, until_s)

    def _answer_file(self, team: str, id: str) -> Storage:
        return self._root / team / ANSWERS / day_of(begun_s(id)) / f"{id}.json"

    def _ratings(self, team: str, id: str) -> Storage:
        return self._root / team / day_of(begun_s(id)) / id


def _begun(pattern: re.Pattern[str]) -> BegunAt:
    """When the answer of a file was begun whose name has the `pattern`."""

    def begun(name: str) -> float | None:
        found = pattern.fullmatch(name)
        return begun_s(found["id"]) if found is not None and is_id(found["id"]) else None

    return begun


ANSWER_BEGUN, RATING_BEGUN = _begun(ANSWER_FILE), _begun(RATING_FILE)
