"""Pieces of text in, token ids with loss mask and turn ends out. Knows no tokenizer: it is given `encode`.

The ids of a conversation are built piece by piece and the mask at the same time, so that they cannot disagree
(NeMo-Aligner tokenises turns separately and only warns on a mismatch).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.attributes import Values
from data.conversation import Message
from data.errors import UserError
from data.template import Labels, Piece, Template

Encode = Callable[[str], list[int]]
"""Text to ids; control tokens are recognised, nothing is added."""


@dataclass(frozen=True)
class Tokens:
    """One conversation: `ids_T`, `trained_T` (loss on predicting this token), `turn_ends_S` (positions of assistant turn ends)."""

    ids_T: np.ndarray
    trained_T: np.ndarray
    turn_ends_S: np.ndarray
    num_dropped_turns: int = 0
    """Assistant turns cut off the front to fit `max_tokens`."""

    def __len__(self) -> int:
        return len(self.ids_T)


@dataclass(frozen=True)
class Reading:
    """How a backbone reads a conversation: a decoder all of it at once, an encoder each answer with what came before it."""

    causal: bool = True
    before: tuple[int, ...] = ()
    """Ids an encoder wants first ([CLS]); there it is read."""
    after: tuple[int, ...] = ()
    """Ids an encoder wants last ([SEP])."""


@dataclass(frozen=True)
class Segment:
    """What one conversation puts into a packed row: `ids_T`, and `reads_S`, the positions whose hidden state the heads read."""

    ids_T: np.ndarray
    reads_S: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_T)


class OverLong(UserError):
    """Not even the last exchange fits."""


def tokenize(pieces: Sequence[Piece], encode: Encode) -> Tokens:
    """Ids of all pieces in order. Micro-example: [prompt: 3 ids][answer, trained: 2 ids] -> trained_T 0 0 0 1 1, turn_ends_S [4]."""
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


def fitted(
    template: Template, encode: Encode, system: str, messages: Sequence[Message], labels: Labels, max_tokens: int
) -> Tokens:
    """The conversation in at most `max_tokens`: the oldest exchanges are cut first, the system text and last answer never.

    Raises OverLong, with both numbers, if the last exchange alone does not fit.
    """
    labels = list(labels or [None] * sum(m.role == "assistant" for m in messages))
    dropped = 0
    while True:
        tokens = tokenize(template.pieces(system, messages, labels), encode)
        if len(tokens) <= max_tokens:
            return Tokens(tokens.ids_T, tokens.trained_T, tokens.turn_ends_S, dropped)
        if len(messages) <= 2:
            raise OverLong(f"the last exchange has {len(tokens)} tokens, max_tokens is {max_tokens}")
        messages, labels, dropped = messages[2:], labels[1:], dropped + 1


def prompt_ids(
    template: Template,
    encode: Encode,
    system: str,
    messages: Sequence[Message],
    attributes: Values | None,
    labels: Labels = (),
) -> list[int]:
    """Ids to generate from: the conversation so far (user turn last) and the label line that asks for `attributes`."""
    if not messages or messages[-1].role != "user":
        raise UserError("a prompt ends with a user turn")
    return [token for piece in template.pieces(system, messages, labels, attributes) for token in encode(piece.text)]


def segments(tokens: Tokens, reading: Reading) -> list[Segment]:
    """The segments whose reads, in order, are the conversation's turns.

    Micro-example, turn ends 3 and 8: a decoder reads 9 ids at 3 and 8; an encoder reads [CLS] + 4 ids + [SEP] at 0, and [CLS] + 9 ids + [SEP] at 0,
    because it would otherwise see the second answer while it rates the first.
    """
    if reading.causal:
        return [Segment(tokens.ids_T, tokens.turn_ends_S)]
    at_first = np.zeros(1, np.int32)
    return [
        Segment(np.array([*reading.before, *tokens.ids_T[: end + 1], *reading.after], np.int32), at_first)
        for end in tokens.turn_ends_S
    ]
