"""What callers send to rate an answer, and what comes back. Knows no JSON, no schema of attributes and no HTTP."""

from typing import Literal

from pydantic import Field

from serve.chat_request import AttributeValues
from serve.protocol import ProtocolRecord


class FeedbackRequest(ProtocolRecord):
    """Body of POST /v1/feedback: a person's ratings of an answer that the endpoint gave."""

    id: str
    """Of the reply."""
    index: int = Field(0, ge=0)
    """Which of its choices."""
    attributes: AttributeValues = Field(min_length=1)
    """On the scale of the schema, fractions too; attributes that are left out are not rated."""


class FeedbackReply(ProtocolRecord):
    """The ratings as they are kept; the same key's next ones of this choice replace them."""

    object: Literal["feedback"] = "feedback"
    id: str
    index: int
    attributes: dict[str, float]


class FeedbackDeleted(ProtocolRecord):
    """What was removed."""

    object: Literal["feedback.deleted"] = "feedback.deleted"
    answers: int
    """Texts that waited for ratings."""
    ratings: int
    """Each with its text."""
