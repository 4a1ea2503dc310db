"""An endpoint without Ray that takes feedback, and what lies in its store."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from support.asgi import LAB, USER, Scripted, app_around, ask

from data.conversation import Conversation
from data.lines import Row
from data.sources import read
from serve.answering import Generate
from serve.auth import Team, hashed
from serve.feedback import Feedback
from serve.feedback_store import FeedbackSettings, FeedbackStore
from serve.models import ServedPolicies

TEAMS = (
    Team(name="games", feedback=True),
    Team(name="school", profiles=("education",), feedback=True),
    Team(name="silent"),
)
KEYS_TEXT = "\n".join(f"{team} {hashed(key)}" for team, key in [("games", "a"), ("games", "b"), ("school", "c")])
KEYS_TEXT += f"\nsilent {hashed('d')}"
NOW_S = 1_796_000_000.0


class Lost:
    """Counts the answers that could not be kept."""

    num = 0

    def __call__(self) -> None:
        self.num += 1


def feedback_in(
    folder: object, clock: Callable[[], float] = time.time, lost: Callable[[], None] | None = None, **settings: Any
) -> Feedback:
    """Over the store in a folder."""
    found = FeedbackSettings(store=str(folder), **settings)
    return Feedback(FeedbackStore(str(folder)), found, lost or Lost(), clock)


def keyed_app(
    feedback: Feedback | None, generate: Generate | None = None, models: ServedPolicies | None = None
) -> FastAPI:
    """With the keys a and b of games, c of school, and d of a team without the right."""
    return app_around(
        generate or Scripted().generate, keys_text=KEYS_TEXT, teams=TEAMS, models=models, feedback=feedback
    )


def answer_id(app: Any, key: str | None = "a", **fields: Any) -> str:
    """Of one that was asked for."""
    answered = ask(app, key, **{"messages": [USER], **fields})
    assert answered.status == 200, answered.json
    return str(answered.json["id"])


def error_code(answered: tuple[int, Any]) -> tuple[int, str]:
    """(status, code) of a refusal."""
    status, reply = answered
    return status, reply["error"]["code"]


def rated(app: FastAPI, key: str | None, id: str, index: int = 0, **attributes: Any) -> Any:
    """(status, reply) of a rating."""
    answered = ask(app, key, "/v1/feedback", id=id, index=index, attributes=attributes)
    return answered.status, answered.json


def rows(folder: object) -> list[Row]:
    """As a run reads them, with `format: messages` and the store as its `uri`."""
    return list(read(str(folder), "messages", LAB, "feedback"))


def human(folder: object) -> list[list[dict[str, float]]]:
    """People's values of each row."""
    found = []
    for row in rows(folder):
        assert isinstance(row, Conversation), row
        found.append([dict(values) for values in row.human])
    return found


def files(folder: Path) -> list[str]:
    """Below it, by their paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
