"""The CPU side of annotation: rows in, the same rows with their token ids out. Loads no weights."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.modeling.model_folder import Format, load_format, text_folder
from actors.modeling.tokenizer import encoder
from data.conversation import Conversation, from_table
from data.template import Unrenderable
from data.tokens import Tokens, tokenize

COLUMNS = ("ids", "turn_ends", "whole_tokens", "answers")


@dataclass(frozen=True)
class AnnotatorInput:
    """Tokenize each row as the predictor at `predictor` reads it; a longer conversation keeps its last `max_tokens`.

    Micro-example, max_tokens 4: 6 ids with turn ends at 1 and 5, the second answer of 2 ids -> ids 2 to 5,
    turn_ends [3], whole_tokens 6, answers [0, 0, 1, 1].
    """

    predictor: str
    fingerprint: str
    max_tokens: int

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add columns `ids`, `turn_ends` (within those ids), `whole_tokens` (before the cut) and `answers` (is an id
        an answer's?).

        Raises UserError if there is no predictor.
        """
        kept, whole_tokens = read(from_table(batch), _format(self.predictor, self.fingerprint), self.max_tokens)
        columns = (
            pa.array([t.ids_T for t in kept], pa.list_(pa.int32())),
            pa.array([t.turn_ends_S for t in kept], pa.list_(pa.int32())),
            pa.array(whole_tokens, pa.int32()),
            pa.array([t.trained_T for t in kept], pa.list_(pa.bool_())),
        )
        for name, column in zip(COLUMNS, columns, strict=True):
            batch = batch.append_column(name, column)
        return batch

    @staticmethod
    def has_tokenized(batch: pa.Table) -> bool:
        return set(COLUMNS) <= set(batch.column_names)

    @staticmethod
    def tokens_of(batch: pa.Table) -> tuple[list[Tokens], np.ndarray]:
        """The result of `__call__`: the tokens of each row, and which rows were cut."""
        columns = (batch.column(name) for name in ("ids", "answers", "turn_ends"))
        tokens = [
            Tokens(ids.values.to_numpy(), answers.values.to_numpy(zero_copy_only=False), ends.values.to_numpy())
            for ids, answers, ends in zip(*columns, strict=True)
        ]
        return tokens, batch.column("whole_tokens").to_numpy() > np.array([len(t) for t in tokens], np.int64)


def read(conversations: Iterable[Conversation], format: Format, max_tokens: int) -> tuple[list[Tokens], list[int]]:
    """The tokens of each conversation, of an over-long one the last `max_tokens`; and how many it has.

    One that the template refuses is cut to nothing.
    """
    num_tokens = max_tokens - len(format.reading.before) - len(format.reading.after)
    encode, kept, whole_tokens = encoder(format.tokenizer), [], []
    for conversation in conversations:
        try:
            whole = tokenize(format.template.pieces(conversation.system, conversation.messages, ()), encode)
        except Unrenderable:
            kept.append(tokenize([], encode))
            whole_tokens.append(1)
        else:
            kept.append(kept_end(whole, num_tokens))
            whole_tokens.append(len(whole))
    return kept, whole_tokens


def kept_end(tokens: Tokens, num_tokens: int) -> Tokens:
    """The last `num_tokens` tokens and the turns that end in them."""
    cut = max(0, len(tokens) - num_tokens)
    kept = tokens.turn_ends_S >= cut
    return Tokens(tokens.ids_T[cut:], tokens.trained_T[cut:], tokens.turn_ends_S[kept] - cut, int((~kept).sum()))


@functools.lru_cache(maxsize=2)
def _format(predictor: str, fingerprint: str) -> Format:
    """Loaded once by each process, and again for a predictor that was retrained in the same folder."""
    del fingerprint  # only a cache key: it differs if the folder's content does
    return load_format(text_folder(predictor))
