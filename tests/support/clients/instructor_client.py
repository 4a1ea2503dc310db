"""Instructor, which asks for a pydantic record in place of a text."""

from typing import Literal

import instructor
import openai
from harness import BASE, DIALS, KEY, MODEL, PROFILE, TOOL_MODEL, USER, run
from pydantic import BaseModel


class Opinion(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def client(mode: instructor.Mode | None = None) -> instructor.Instructor:
    own = openai.OpenAI(base_url=BASE, api_key=KEY)
    return instructor.from_openai(own) if mode is None else instructor.from_openai(own, mode=mode)


def json() -> None:
    made = client(instructor.Mode.JSON_SCHEMA).create(
        model=MODEL, messages=[USER], response_model=Opinion, max_retries=0
    )
    assert isinstance(made, Opinion)


def stream() -> None:
    *_, last = client(instructor.Mode.JSON_SCHEMA).create_partial(
        model=MODEL, messages=[USER], response_model=Opinion, max_retries=0
    )
    assert last.stars


def profile() -> None:
    made, whole = client(instructor.Mode.JSON_SCHEMA).create_with_completion(
        model=PROFILE, messages=[USER], response_model=Opinion, max_retries=0
    )
    assert isinstance(made, Opinion)
    assert whole.steering["effective"]


def attributes() -> None:
    _, whole = client(instructor.Mode.JSON_SCHEMA).create_with_completion(
        model=MODEL, messages=[USER], response_model=Opinion, max_retries=0, extra_body={"attributes": DIALS}
    )
    assert whole.steering["requested"] == DIALS


def tools() -> None:
    """What it does by default."""
    assert isinstance(
        client().create(model=TOOL_MODEL, messages=[USER], response_model=Opinion, max_retries=0), Opinion
    )


run(json, stream, profile, attributes, tools)
