"""How likely the tokens of a reply were, in the two shapes that OpenAI has for it. Knows no tokenizer and no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from actors.generation.protocol import TokenLogprob
from serve.detokenizer import REPLACEMENT, Detokenizer
from serve.protocol import ProtocolRecord

LEAST = -9999.0
"""For a probability of 0: JSON has no infinity, and OpenAI and vLLM send this."""


@dataclass(frozen=True)
class ReportedToken:
    """A token of a prompt or an answer, as it crosses processes."""

    text: str
    """By itself; control tokens by their names."""
    settled: str
    """What it adds to the text: nothing for the first bytes of a character, or for a control token."""
    logprob: float | None
    """None for a prompt's first token."""
    top: tuple[tuple[str, float], ...] = ()
    """(text, log-probability) of the likeliest tokens in its place."""


class TokenReporter:
    """Tokens of one text, in order, and their log-probabilities as they are reported."""

    def __init__(self, name: Callable[[int], str], decode: Callable[[list[int]], str]):
        """`name`: the text of one token alone; `decode`: the text of several, without control tokens."""
        self._name, self._detokenizer = name, Detokenizer(decode)

    def push(
        self, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], last: bool = False
    ) -> list[ReportedToken]:
        """With `last`, the last token also settles what no character has come of."""
        return [
            self._reported(token, found, last and place == len(ids) - 1)
            for place, (token, found) in enumerate(zip(ids, logprobs, strict=True))
        ]

    def _reported(self, token: int, found: TokenLogprob | None, last: bool) -> ReportedToken:
        settled = self._detokenizer.push([token], last)
        if found is None:
            return ReportedToken(self._name(token), settled, None)
        top = tuple((self._name(i), max(p, LEAST)) for i, p in found.top)
        return ReportedToken(self._name(token), settled, max(found.logprob, LEAST), top)


class TopLogprob(ProtocolRecord):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int] | None
    """In UTF-8; None for a token that is no whole character."""


class ContentLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ProtocolRecord):
    """Of a chat completion's choice, or of a chunk's."""

    content: list[ContentLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[ReportedToken], num_top: int) -> "ChatLogprobs":
        """`num_top`: of the request; the engine may have been asked for more."""
        return cls(
            content=[
                ContentLogprob(
                    token=token.text,
                    logprob=token.logprob,
                    bytes=_bytes(token.text),
                    top_logprobs=[
                        TopLogprob(token=text, logprob=logprob, bytes=_bytes(text))
                        for text, logprob in token.top[:num_top]
                    ],
                )
                for token in tokens
                if token.logprob is not None
            ]
        )


def _bytes(text: str) -> list[int] | None:
    return None if REPLACEMENT in text else list(text.encode())


class CompletionLogprobs(ProtocolRecord):
    """Of a text completion's choice: four lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens and the one that stands there."""
    text_offset: list[int]
    """Where each token begins, in characters of the choice's text."""

    @classmethod
    def of(cls, tokens: Sequence[ReportedToken], num_top: int, offset: int = 0) -> "CompletionLogprobs":
        """`offset`: characters of the choice that came before."""
        sizes = [len(token.settled) for token in tokens]
        return cls(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[_by_text(token, num_top) for token in tokens],
            text_offset=[*accumulate(sizes, initial=offset)][: len(sizes)],
        )


def _by_text(token: ReportedToken, num_top: int) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for text, logprob in (*token.top[:num_top], (token.text, token.logprob)):
        found.setdefault(text, logprob)  # of two with the same text the likelier one
    return found
