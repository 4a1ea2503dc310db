"""The fields that every request for an answer has: which model, how its tokens are chosen, and how it is sent.

Knows no prompt. Values are OpenAI's, those beyond them are vLLM's.
"""

from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from actors.generation.protocol import MAX_BIAS, MAX_BIASED, MAX_PENALTY, REPETITION_RANGE
from data.bounds import MAX_GUIDANCE
from data.errors import UserError
from serve.protocol import ProtocolError, ProtocolRecord

MAX_STOPS = 4
"""OpenAI's limit on `stop`."""
MAX_STOP_CHARS = 256
"""A stop string is held back while it may still come, so a very long one would stall the stream."""
MAX_TOP_K = 1000
MAX_CHOICES = 8
SEED_LIMIT = 2**63


class StreamOptions(ProtocolRecord):
    """OpenAI's options for a streamed answer."""

    include_usage: bool = False
    """Send the token counts in one more chunk before [DONE]?"""


class SamplingFields(ProtocolRecord):
    """Fields of chat and text completions alike."""

    model: str | None = None
    """Which policy, also with a profile and attributes: demo, demo:education, demo:education@humor=4,verbosity=1; None
    = the one that is served."""
    stream: bool = False
    """Send the answer in pieces as it comes (server-sent events)?"""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 = always the likeliest token; None = the endpoint's own, see GET /v1/attributes."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the likeliest tokens that make up this share; None = the endpoint's own."""
    top_k: int = Field(0, ge=-1, le=MAX_TOP_K)
    """Sample from this many likeliest tokens; 0 or -1 = off."""
    seed: int | None = Field(None, ge=-SEED_LIMIT, lt=SEED_LIMIT)
    """Same seed, same request: same answer."""
    stop: list[str] = Field([], max_length=MAX_STOPS)
    """The answer ends before any of these; a string or a list."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """Answers per request; with a seed, choice i is the answer to seed + i."""
    frequency_penalty: float = Field(0.0, ge=-MAX_PENALTY, le=MAX_PENALTY)
    """Subtracted from a token's logit for each time that the answer has it."""
    presence_penalty: float = Field(0.0, ge=-MAX_PENALTY, le=MAX_PENALTY)
    """Subtracted once from the logit of every token that the answer has."""
    repetition_penalty: float = Field(1.0, ge=REPETITION_RANGE[0], le=REPETITION_RANGE[1])
    """Makes tokens that prompt or answer have less likely; 1 = off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample only from tokens at least this likely, in shares of the likeliest one's probability; 0 = off."""
    logit_bias: dict[str, float] = Field({}, max_length=MAX_BIASED)
    """Token id -> what is added to its logit, from -100 to 100."""
    ignore_eos: bool = False
    """Go on to max_tokens, whatever ends an answer; benchmarks ask for it."""
    guidance: float = Field(1.0, ge=0, le=MAX_GUIDANCE)
    """Ours: how far to go from the answer without the request towards the answer with it, and beyond; 1 = off. A guided
    answer costs two: both prompts and twice its tokens count against the team's budget."""
    user: str | None = None
    """The caller's own name for its user; changes nothing in the answer."""

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _usable_stops(cls, stops: list[str]) -> list[str]:
        if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise UserError("a stop string is empty or too long")
        return stops

    @field_validator("logit_bias")
    @classmethod
    def _usable_bias(cls, biases: dict[str, float]) -> dict[str, float]:
        for token, bias in biases.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10 and -MAX_BIAS <= bias <= MAX_BIAS):
                raise UserError("a key is no token id, or a value is out of range")
        return biases

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise ProtocolError("stream_options is only allowed with stream: true", "stream_options")
        return self

    @property
    def biases(self) -> Mapping[int, float]:
        """Token id -> bias."""
        return {int(token): bias for token, bias in self.logit_bias.items()}

    @property
    def include_usage(self) -> bool:
        """End a stream with the token counts?"""
        return self.stream_options is not None and self.stream_options.include_usage
