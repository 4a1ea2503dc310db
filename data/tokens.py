"""Pieces of text in, token ids with loss mask and turn ends out. Knows no tokenizer: it is given `encode`.

The ids of a conversation and their mask are built piece by piece together, so that they cannot disagree (NeMo-Aligner
tokenizes turns separately and only warns on a mismatch).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.attributes import Values
from data.conversation import Message
from data.errors import UserError
from data.template import Labels, Template, TextPiece, Unrenderable

Encode = Callable[[str], list[int]]
"""Text to ids; control tokens are recognized, nothing is added."""


@dataclass(frozen=True)
class Tokens:
    """One conversation: `ids_T`, `trained_T` (loss on predicting this token), `turn_ends_S` (of assistant turns)."""

    ids_T: np.ndarray
    trained_T: np.ndarray
    turn_ends_S: np.ndarray
    num_dropped_turns: int = 0
    """Assistant turns cut off the front to fit `max_tokens`."""

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def turn_starts_S(self) -> np.ndarray:
        """The first token of each assistant turn, int32 [S]."""
        return turn_starts(self.trained_T, self.turn_ends_S)

    def last_answer_trained(self) -> "Tokens":
        """The same, with loss on the last answer alone.

        Micro-example: trained_T 0 1 1 0 0 1, turn_ends_S [2, 5] -> 0 0 0 0 0 1.
        """
        later_T = np.arange(len(self)) >= self.turn_starts_S[-1]
        return replace(self, trained_T=self.trained_T & later_T)


@dataclass(frozen=True)
class BackboneReading:
    """How a backbone reads a conversation: a decoder all of it at once, an encoder each answer with all before it."""

    causal: bool = True
    before: tuple[int, ...] = ()
    """Ids an encoder wants first ([CLS]); there it is read."""
    after: tuple[int, ...] = ()
    """Ids an encoder wants last ([SEP])."""


@dataclass(frozen=True)
class Segment:
    """One conversation's part of a pack: `ids_T`, and `reads_S`, the positions whose hidden state the heads read.

    `starts_S`: the first token of the answer that ends at each of them; equal to `reads_S` where no answer is read.
    """

    ids_T: np.ndarray
    reads_S: np.ndarray
    starts_S: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_T)


def turn_starts(trained_T: np.ndarray, turn_ends_S: np.ndarray) -> np.ndarray:
    """The first token of each assistant turn by its loss mask, int32 [S]; of one whose front was cut, the first left.

    Micro-example: trained_T 0 1 1 0 0 1, turn_ends_S [2, 5] -> [1, 5].
    """
    others = np.flatnonzero(~trained_T)
    return (np.append(-1, others)[np.searchsorted(others, turn_ends_S)] + 1).astype(np.int32)


class OverLong(UserError):
    """Not even the last exchange fits."""


def tokenize(pieces: Sequence[TextPiece], encode: Encode) -> Tokens:
    """Ids of all pieces in order.

    Micro-example: [prompt: 3 ids][answer, trained: 2 ids] -> trained_T 0 0 0 1 1, turn_ends_S [4].
    """
    ids: list[int] = []
    trained: list[bool] = []
    ends: list[int] = []
    for piece in pieces:
        new = encode(piece.text)
        ids += new
        trained += [piece.trained] * len(new)
        if piece.trained:
            ends.append(len(ids) - 1)
    return Tokens(np.array(ids, np.int32), np.array(trained, np.bool_), np.array(ends, np.int32))


class ConversationTokens:
    """The tokens of a conversation up to any of its answers, in a limited number: the oldest exchanges are cut first.

    An exchange is a user turn and its answer. Each is tokenized at most once as a later one and once as the first one,
    so that the time grows with what is kept, not with its square.
    """

    def __init__(
        self, template: Template, encode: Encode, system: str, messages: Sequence[Message], labels: Labels = ()
    ):
        """Raises Unrenderable as the template does."""
        self._template, self._encode, self._system, self._messages = template, encode, system, messages
        self._labels = list(labels or [None] * (len(messages) // 2))
        self._pieces = template.pieces(system, messages, self._labels) if template.is_local else []
        self._later: dict[int, Tokens] = {}
        self._first: dict[int, Tokens] = {}

    def fitted(self, max_tokens: int, num_answers: int | None = None) -> Tokens:
        """The first `num_answers` exchanges (None = all) in at most `max_tokens`; system text and last answer stay.

        Raises OverLong, with both numbers, if the last exchange alone does not fit.
        """
        end = len(self._labels) if num_answers is None else num_answers
        if not self._template.is_local:
            return self._rendered_again(max_tokens, end)
        start, sizes = end, [0]  # sizes[i]: tokens of the last i exchanges
        while start > 0 and sizes[-1] <= max_tokens:
            start -= 1
            sizes.append(sizes[-1] + len(self._exchange(start)))
        if sizes[-1] <= max_tokens:
            return self._joined(self._exchange(0), 0, end)
        candidates = range(max(start, 1), end) or range(end - 1, end)
        first = candidates[
            min(
                bisect_left(candidates, -max_tokens, key=lambda i: -len(self._as_first(i)) - sizes[end - i - 1]),
                len(candidates) - 1,
            )
        ]
        tokens = self._joined(self._as_first(first), first, end)
        if len(tokens) > max_tokens:
            raise _over_long(len(tokens), max_tokens)
        return tokens

    def _rendered_again(self, max_tokens: int, end: int) -> Tokens:
        """The same where an exchange's text depends on its place: each attempt is rendered anew."""
        for first in range(end):
            tokens = tokenize(self._rendered(first, end), self._encode)
            if len(tokens) <= max_tokens:
                return replace(tokens, num_dropped_turns=first)
        raise _over_long(len(tokens), max_tokens)

    def _rendered(self, first: int, end: int) -> list[TextPiece]:
        return self._template.pieces(self._system, self._messages[2 * first : 2 * end], self._labels[first:end])

    def _exchange(self, index: int) -> Tokens:
        """An exchange where it stands."""
        if index not in self._later:
            self._later[index] = tokenize(self._pieces[2 * index : 2 * index + 2], self._encode)
        return self._later[index]

    def _as_first(self, index: int) -> Tokens:
        """An exchange behind the system text, with all before it cut."""
        if index not in self._first:
            self._first[index] = tokenize(self._rendered(index, index + 1), self._encode)
        return self._first[index]

    def _joined(self, first: Tokens, index: int, end: int) -> Tokens:
        parts = [first, *(self._exchange(i) for i in range(index + 1, end))]
        starts = np.cumsum([0, *map(len, parts)])
        ends = [part.turn_ends_S + start for part, start in zip(parts, starts, strict=False)]
        return Tokens(
            np.concatenate([part.ids_T for part in parts]),
            np.concatenate([part.trained_T for part in parts]),
            np.concatenate(ends).astype(np.int32),
            num_dropped_turns=index,
        )


def _over_long(num_tokens: int, max_tokens: int) -> OverLong:
    return OverLong(f"the last exchange has {num_tokens} tokens, max_tokens is {max_tokens}")


def prompt_ids(
    template: Template,
    encode: Encode,
    system: str,
    messages: Sequence[Message],
    attributes: Values | None,
    labels: Labels = (),
) -> list[int]:
    """Ids to generate from: the conversation so far, the label line that requests `attributes`, and the answer's
    beginning if an assistant's message is last. `labels` are those of the answers before it.

    Raises Unrenderable if the template refuses this conversation.
    """
    if not messages:
        raise UserError("a prompt needs a message: add a user's")
    asks = messages[-1].role == "user"
    before = messages if asks else messages[:-1]
    assert not before or before[-1].role == "user", "turns alternate"
    try:
        pieces = _up_to_answer(template, system, before, attributes, labels)
    except Unrenderable:
        if messages[0].role == "user":
            raise
        # Some templates want a user first: one who has said nothing yet.
        pieces = _up_to_answer(template, system, [Message("user", ""), *before], attributes, labels)
    # As in training, the answer's text is tokenized on its own.
    begun = [] if asks else [TextPiece(template.plain(messages[-1].content))]
    return [token for piece in (*pieces, *begun) for token in encode(piece.text)]


def answer_tokens(
    template: Template, encode: Encode, system: str, messages: Sequence[Message], labels: Labels, max_tokens: int
) -> Tokens:
    """A conversation in at most `max_tokens`, with loss on its last answer alone.

    Raises OverLong and Unrenderable as `ConversationTokens` does.
    """
    whole = ConversationTokens(template, encode, system, messages, labels)
    return whole.fitted(max_tokens).last_answer_trained()


def _up_to_answer(
    template: Template, system: str, messages: Sequence[Message], attributes: Values | None, labels: Labels
) -> Sequence[TextPiece]:
    """What stands before an answer to `messages`, also where there are none yet."""
    if messages:
        return template.pieces(system, messages, labels, attributes)
    return template.pieces(system, [Message("assistant", "")], [attributes])[:-1]


def segments(tokens: Tokens, reading: BackboneReading) -> list[Segment]:
    """The segments whose reads, in order, are the conversation's turns.

    Micro-example, turn ends 3 and 8: a decoder reads 9 ids at 3 and 8. An encoder reads [CLS] + 4 ids + [SEP] at 0, and
    [CLS] + 9 ids + [SEP] at 0: otherwise it would see the second answer while it rates the first.
    """
    if reading.causal:
        return [Segment(tokens.ids_T, tokens.turn_ends_S, tokens.turn_starts_S)]
    at_first = np.zeros(1, np.int32)
    return [
        Segment(np.array([*reading.before, *tokens.ids_T[: end + 1], *reading.after], np.int32), at_first, at_first)
        for end in tokens.turn_ends_S
    ]
