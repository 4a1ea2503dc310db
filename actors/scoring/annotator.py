"""The Ray Data worker of annotation: rows in, the same rows with raw predicted values out.

It is a `Rater`, and a `Panel` where others rate as well, between Arrow tables. Text has become ids before it comes here
(`actors.scoring.preprocessor`), on a CPU of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.kernels.devices import own_device
from actors.kernels.precision import usable_dtype
from actors.modeling.model_folder import local_folder
from actors.scoring.panel import OtherRaters, Panel, PanelRatings
from actors.scoring.predictor import Predictor
from actors.scoring.preprocessor import COLUMNS, AnnotatorInput
from actors.scoring.rater import Rater
from actors.scoring.split_predictor import SplitPredictor
from data.attributes import AttributeSchema
from data.conversation import RATED_BY, Conversation, annotated_schema, from_table, schema_of, to_table
from data.counters import Counters, with_counters
from data.tokens import Tokens


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
        packing: bool = True,
        others: OtherRaters | None = None,
        tensor_parallel: int = 1,
    ):
        """`predictor` is a model folder or URI; raises UserError if it is none, SchemaMismatch if schemas differ.

        `pack_tokens` and `max_tokens` bound a pack and a conversation; `over_long` ("keep_end" or "reject") is for
        longer conversations; without `packing` each runs by itself, where with it a model that mixes conversations is
        a UserError. `others` rate the answers that the predictor reads; None = it is the only rater. With
        `tensor_parallel` parts the predictor is split over as many devices, `num_threads` CPU threads each.
        """
        dtype = usable_dtype(dtype, own_device(), "annotate.pool.dtype")
        if tensor_parallel > 1:
            loaded: Predictor = SplitPredictor.load_parts(predictor, tensor_parallel, dtype, num_threads, packing)
        else:
            loaded = Predictor.load(predictor, dtype, num_threads=num_threads, packing=packing)
        schema.require_same(loaded.schema, "the run", f"the predictor at {local_folder(predictor)}")
        self.rater = Rater(loaded, pack_tokens, max_tokens)
        self.schema, self.fingerprint, self.over_long, self.others = schema, fingerprint, over_long, others
        self.panel = Panel(others, dtype, pack_tokens) if others else None
        self.input = AnnotatorInput(predictor, fingerprint, max_tokens)

    @staticmethod
    def companion(arguments: Mapping[str, Any]) -> AnnotatorInput:
        """The preprocessor for an Annotator with these arguments."""
        return AnnotatorInput(arguments["predictor"], arguments["fingerprint"], arguments["max_tokens"])

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Fill in `predicted`, `predictor`, `tokens` and `truncated` of rows; the counters go into the metadata.

        Raises SchemaMismatch if the rows have another attribute schema.
        """
        self.schema.require_same(schema_of(batch.schema, "the rows"), "the run", "the rows")
        if not AnnotatorInput.has_tokenized(batch):
            batch = self.input(batch)
        tokens, truncated_B = AnnotatorInput.tokens_of(batch)
        unread_B = truncated_B & (self.over_long == "reject")
        scores, packing = self.rater.rate_tokens(
            [
                Tokens(t.ids_T[:0], t.trained_T, t.turn_ends_S[:0]) if no else t
                for t, no in zip(tokens, unread_B, strict=True)
            ]
        )
        read_B = np.where(unread_B, 0, [len(t) for t in tokens]).astype(np.int32)
        panel = self.panel(list(from_table(batch.drop_columns(list(COLUMNS)))), scores) if self.panel else None
        scores = panel.scores if panel else scores
        predicted = self._predicted(batch, scores)
        columns = {
            "predicted": predicted,
            "predictor": [self.fingerprint] * len(batch),
            "truncated": truncated_B,
            "tokens": read_B,
        }
        if panel:
            columns[RATED_BY] = self._rated_by(batch, panel)
        schema = annotated_schema(self.schema, self.others.roster.described if self.others else {})
        values = {name: columns[name] if name in columns else batch.column(name) for name in schema.names}
        counters = self._counters(scores, predicted, truncated_B, unread_B) | {"tokens": int(read_B.sum())} | packing
        return with_counters(pa.table(values, schema=schema), counters | (panel.counters if panel else {}))

    def annotated(self, rows: Sequence[Conversation]) -> list[Conversation]:
        """The same for rows in memory."""
        return list(from_table(self(to_table(rows, self.schema))))

    def _predicted(self, batch: pa.Table, scores: Sequence[np.ndarray]) -> pa.Array:
        """One entry per assistant turn, NaN for those before the first that was read."""
        num_answers_B = self._num_answers(batch)
        whole = [self.rater.whole(s, n) for s, n in zip(scores, num_answers_B, strict=True)]
        values_SA = np.concatenate([np.zeros((0, len(self.schema.names)), np.float32), *whole])
        return self._structs(values_SA, num_answers_B)

    def _rated_by(self, batch: pa.Table, panel: PanelRatings) -> pa.Array:
        """The same of who gave each value, null for none."""
        num_answers_B, width = self._num_answers(batch), len(self.schema.names)
        whole = [np.full((0, width), None, object)]
        for by_SA, num in zip(panel.rated_by, num_answers_B, strict=True):
            whole += [np.full((num - len(by_SA), width), None, object), by_SA]
        return self._structs(np.concatenate(whole), num_answers_B, pa.string())

    @staticmethod
    def _num_answers(batch: pa.Table) -> np.ndarray:
        found: np.ndarray = pc.list_value_length(batch.column("human")).to_numpy()
        return found

    def _structs(self, values_SA: np.ndarray, num_answers_B: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
        columns = [pa.array(values_SA[:, a], kind) for a in range(len(self.schema.names))]
        values = pa.StructArray.from_arrays(columns, names=list(self.schema.names))
        return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *num_answers_B]), pa.int32()), values)

    def _counters(
        self, scores: Sequence[np.ndarray], predicted: pa.Array, truncated_B: np.ndarray, unread_B: np.ndarray
    ) -> Counters:
        num_answers, num_rated = len(predicted.flatten()), sum(map(len, scores))
        # Others have no value of some answers: a measure none of an answer without a word.
        add = np.nansum if self.others else np.sum
        sums_A = np.sum([np.zeros(len(self.schema.names)), *(add(s, 0, dtype=np.float64) for s in scores)], axis=0)
        counts = {"answers": num_answers, "rated_answers": num_rated, "answers_cut_off": num_answers - num_rated}
        flags = {"truncated": int(truncated_B.sum()), "over_long_unrated": int(unread_B.sum())}
        sums = {f"sum/{name}": float(s) for name, s in zip(self.schema.names, sums_A, strict=True)}
        return {**counts, **flags, **sums}
