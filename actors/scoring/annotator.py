"""The Ray Data worker of annotation: rows in, the same rows with raw predicted values out.

It holds a predictor; sorting and packing by token budget happen inside each batch, so order and batch size do not change a score.
Text has become ids before it comes here (`actors.scoring.preprocessor`), on a CPU of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.modeling.model_folder import local_folder
from actors.scoring.predictor import Predictor
from actors.scoring.preprocessor import AnnotatorInput
from data.attributes import AttributeSchema
from data.conversation import Conversation, arrow_schema, from_table, schema_of, to_table
from data.counters import Counters, with_counters
from data.packing import best_fit
from data.tokens import Segment, Tokens, segments


class Annotator:
    """Score every assistant turn of every row of a batch."""

    def __init__(
        self,
        predictor: str,
        schema: AttributeSchema,
        fingerprint: str,
        pack_tokens: int,
        max_tokens: int,
        dtype: str,
        num_threads: int,
        over_long: str = "keep_end",
    ):
        """`predictor` is a model folder or URI; raises SchemaMismatch if its schema is not `schema`, UserError if there is no predictor.

        `pack_tokens` and `max_tokens` bound a packed forward and a conversation; `over_long` ("keep_end" or "reject") is for longer ones.
        """
        self.predictor = Predictor.load(predictor, dtype, num_threads=num_threads)
        schema.require_same(self.predictor.schema, "the run", f"the predictor at {local_folder(predictor)}")
        self.predictor.require_segment_fits(max_tokens)
        self.schema, self.fingerprint, self.pack_tokens, self.over_long = schema, fingerprint, pack_tokens, over_long
        self.input = AnnotatorInput(predictor, fingerprint, max_tokens)

    @staticmethod
    def companion(arguments: Mapping[str, Any]) -> AnnotatorInput:
        """What tokenises the rows for an Annotator with these arguments."""
        return AnnotatorInput(arguments["predictor"], arguments["fingerprint"], arguments["max_tokens"])

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows, tokenised or not, -> rows with `predicted`, `predictor`, `tokens` and `truncated` filled in, and their tally in the metadata.

        Raises SchemaMismatch if the rows have another attribute schema.
        """
        self.schema.require_same(schema_of(batch.schema, "the rows"), "the run", "the rows")
        if not AnnotatorInput.has_read(batch):
            batch = self.input(batch)
        tokens, truncated_B = AnnotatorInput.tokens_of(batch)
        unread_B = truncated_B & (self.over_long == "reject")
        scores, packing = self._scores(
            [
                Tokens(t.ids_T[:0], t.trained_T, t.turn_ends_S[:0]) if no else t
                for t, no in zip(tokens, unread_B, strict=True)
            ]
        )
        read_B = np.where(unread_B, 0, [len(t) for t in tokens]).astype(np.int32)
        predicted = self._predicted(batch, scores)
        columns = {
            "predicted": predicted,
            "predictor": [self.fingerprint] * len(batch),
            "truncated": truncated_B,
            "tokens": read_B,
        }
        schema = arrow_schema(self.schema)
        rows = pa.table(
            {name: columns[name] if name in columns else batch.column(name) for name in schema.names}, schema=schema
        )
        return with_counters(
            rows, self._counters(scores, predicted, truncated_B, unread_B) | {"tokens": int(read_B.sum())} | packing
        )

    def annotated(self, rows: Sequence[Conversation]) -> list[Conversation]:
        """The same for rows in memory."""
        return list(from_table(self(to_table(rows, self.schema))))

    def _scores(self, tokens: Sequence[Tokens]) -> tuple[list[np.ndarray], Counters]:
        """Of each conversation the scores of the turns that were read [S, A], and how full the packed rows were."""
        cut = [segments(t, self.predictor.reading) if len(t.turn_ends_S) else [] for t in tokens]
        flat = [(owner, segment) for owner, own in enumerate(cut) for segment in own]
        found: dict[tuple[int, int], np.ndarray] = {}
        rows = best_fit([len(segment) for _, segment in flat], self.pack_tokens)
        for members in rows:
            chosen: list[Segment] = [flat[i][1] for i in members]
            for i, values_SA in zip(
                members, self.predictor.score([s.ids_T for s in chosen], [s.reads_S for s in chosen]), strict=True
            ):
                found[flat[i][0], i] = values_SA
        nothing_SA = np.zeros((0, len(self.schema.names)), np.float32)
        scores = [[nothing_SA] for _ in tokens]
        for owner, i in sorted(found):
            scores[owner].append(found[owner, i])
        filled = sum(len(segment) for _, segment in flat)
        return [np.concatenate(s) for s in scores], {
            "filled_tokens": filled,
            "budget_tokens": len(rows) * self.pack_tokens,
        }

    def _predicted(self, batch: pa.Table, scores: Sequence[np.ndarray]) -> pa.Array:
        """One entry per assistant turn, NaN for those before the first that was read."""
        num_answers_B = pc.list_value_length(batch.column("human")).to_numpy()
        unrated = [
            np.full((n - len(s), len(self.schema.names)), np.nan, np.float32)
            for n, s in zip(num_answers_B, scores, strict=True)
        ]
        values_SA = np.concatenate(
            [part for pair in zip(unrated, scores, strict=True) for part in pair]
            or [np.zeros((0, len(self.schema.names)), np.float32)]
        )
        values = pa.StructArray.from_arrays(
            [pa.array(values_SA[:, a]) for a in range(len(self.schema.names))], names=list(self.schema.names)
        )
        return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *num_answers_B]), pa.int32()), values)

    def _counters(
        self, scores: Sequence[np.ndarray], predicted: pa.Array, truncated_B: np.ndarray, unread_B: np.ndarray
    ) -> Counters:
        num_answers, num_rated = len(predicted.flatten()), sum(map(len, scores))
        sums_A = (
            np.sum([s.sum(0, dtype=np.float64) for s in scores], axis=0)
            if len(scores)
            else np.zeros(len(self.schema.names))
        )
        counts = {"answers": num_answers, "rated_answers": num_rated, "answers_cut_off": num_answers - num_rated}
        flags = {"truncated": int(truncated_B.sum()), "over_long_unrated": int(unread_B.sum())}
        return {
            **counts,
            **flags,
            **{f"sum/{name}": float(s) for name, s in zip(self.schema.names, sums_A, strict=True)},
        }
