"""The Ray Data worker of annotation: rows in, the same rows with raw predicted values out.

It holds a predictor; sorting and packing by token budget happen inside each batch, so order and batch size do not change a score.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from actors.checkpoint import local_folder
from actors.predictor import Predictor
from actors.tokenizer import encoder
from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, from_table, to_table
from data.packing import best_fit
from data.tokens import Tokens, tokenise


class Annotator:
    """Score every assistant turn of every row of a batch."""

    def __init__(self, predictor: str, schema: AttributeSchema, fingerprint: str, row_tokens: int, max_tokens: int, dtype: str, num_threads: int):
        """`predictor` is a model folder or URI; raises SchemaMismatch if its schema is not `schema`."""
        self.predictor = Predictor.load(predictor, dtype, num_threads=num_threads)
        schema.require_same(self.predictor.schema, "the run", f"the predictor at {local_folder(predictor)}")
        self.schema, self.fingerprint = schema, fingerprint
        self.row_tokens, self.max_tokens = row_tokens, max_tokens
        self.encode = encoder(self.predictor.format.tokenizer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = list(from_table(batch))
        return to_table(self.annotated(rows), self.schema)

    def annotated(self, rows: list[Conversation]) -> list[Conversation]:
        """`rows` with `predicted`, `predictor`, `tokens` and `truncated` filled in."""
        whole = [tokenise(self.predictor.format.template.pieces(r.system, r.messages, ()), self.encode) for r in rows]
        tokens = [self._kept_end(t) for t in whole]
        scores: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for members in best_fit([len(t) for t in tokens], self.row_tokens):
            row_scores = self.predictor.score([tokens[i].ids_T for i in members], [tokens[i].turn_ends_S for i in members])
            for i, values_SA in zip(members, row_scores, strict=True):
                scores[i] = values_SA
        return [
            replace(self._filled(row, kept, values_SA), truncated=len(kept) < len(all_of_it))
            for row, all_of_it, kept, values_SA in zip(rows, whole, tokens, scores, strict=True)
        ]

    def _kept_end(self, tokens: Tokens) -> Tokens:
        """An over-long conversation keeps its end: the last answers are scored, the cut ones stay unrated and counted."""
        cut = len(tokens) - self.max_tokens
        if cut <= 0:
            return tokens
        kept = tokens.turn_ends_S >= cut
        return Tokens(tokens.ids_T[cut:], tokens.trained_T[cut:], tokens.turn_ends_S[kept] - cut, int((~kept).sum()))

    def _filled(self, row: Conversation, tokens: Tokens, values_SA: np.ndarray) -> Conversation:
        scored = [dict(zip(self.schema.names, map(float, v), strict=True)) for v in values_SA]
        predicted: tuple[Values, ...] = (*({},) * tokens.num_dropped_turns, *scored)
        return replace(row, predicted=predicted, predictor=self.fingerprint, tokens=len(tokens))
