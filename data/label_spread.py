"""Values of a sample of a folder's rows, for labels by rank: what the predictor gave, or what the texts measure.

Every so many files are read, and of each the one column: a folder of any size costs about the same. Knows no model.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes import AttributeSchema
from data.calibration import Calibration, by_cuts, spread_by_rank
from data.errors import UserError
from data.storage import Storage
from data.text_measures import MEASURES, TextMeasure
from data.text_rater import TextRater

MAX_FILES = 100
"""Files that are read: rows come mixed, so that 100 files of 256 or more tell the ranks within a percent."""
MAX_TEXTS = 20_000
"""Texts that are measured, evenly from these files: some ten seconds."""


def label_spread(rows: Storage, schema: AttributeSchema) -> Calibration:
    """Labels by rank among the answers of annotated `rows`; raises UserError if none is annotated."""
    values_NA = answer_values(rows, schema, "predicted")
    if not len(values_NA):
        raise UserError(
            f"policy.spread_labels needs annotated answers, and there are none in {rows.uri}; run stage annotated first"
        )
    return spread_by_rank(values_NA, schema)


def answer_values(rows: Storage, schema: AttributeSchema, kind: str) -> np.ndarray:
    """Values of the answers of sampled `rows`, float32 [N, A], NaN for none; `kind` is "human" or "predicted"."""
    parts = [_values(_column(file, rows, kind), schema) for file in _sampled(rows)]
    return np.concatenate([np.zeros((0, len(schema.names)), np.float32), *parts])


def answer_texts(rows: Storage, most: int = MAX_TEXTS) -> list[str]:
    """About `most` of the answers of `rows`, evenly from sampled files."""
    files = _sampled(rows)
    texts: list[str] = []
    for file in files:
        messages = _column(file, rows, "messages")
        answers = messages.filter(pc.equal(messages.field("role"), "assistant")).field("content")
        step = max(1, round(len(answers) * len(files) / most))
        texts += answers[::step].to_pylist()
    return texts


def text_rater(
    rows: Storage,
    schema: AttributeSchema,
    measures: Mapping[str, TextMeasure],
    cuts: Mapping[str, tuple[float, ...]],
) -> TextRater:
    """The rater of the attributes in `measures`: by their `cuts`, or else by rank among the answers of `rows`.

    Raises UserError for a measure that cannot be ranked: too few answers, or all of one value.
    """
    points = {name: by_cuts(found, schema[name]) for name, found in cuts.items()}
    by_rank = {name: kind for name, kind in measures.items() if name not in cuts}
    if by_rank:
        values_NA = _measured(rows, schema, by_rank)
        points |= spread_by_rank(values_NA, schema).points
    for name, kind in by_rank.items():
        if name not in points:
            raise UserError(
                f"annotate.raters gives {name} by {kind}, which cannot be ranked: {len(values_NA)} answers in "
                f"{rows.uri} are too few, or all alike; give the text rater cuts of {name} instead"
            )
    return TextRater(measures=dict(measures), scale=Calibration(points=points))


def _sampled(rows: Storage) -> list[str]:
    files = rows.files(".parquet")
    return [files[i] for i in np.unique(np.linspace(0, len(files) - 1, MAX_FILES).astype(int))] if files else []


def _column(file: str, rows: Storage, name: str) -> pa.Array:
    """All answers' or messages' entries of a column of lists, one after the other."""
    column = pq.read_table(file, columns=[name], filesystem=rows.arrow_fs).column(name)
    return pc.list_flatten(column.combine_chunks())


def _values(answers: pa.StructArray, schema: AttributeSchema) -> np.ndarray:
    """float32 [N, A], NaN where an answer was not read."""
    columns = [answers.field(name).to_numpy(zero_copy_only=False) for name in schema.names]
    return (
        np.stack(columns, axis=1).astype(np.float32) if len(answers) else np.zeros((0, len(schema.names)), np.float32)
    )


def _measured(rows: Storage, schema: AttributeSchema, measures: Mapping[str, TextMeasure]) -> np.ndarray:
    """float64 [N, A] of sampled answers, NaN for attributes without a measure."""
    texts = answer_texts(rows)
    values_NA = np.full((len(texts), len(schema.names)), np.nan)
    for column, name in enumerate(schema.names):
        if name in measures:
            values_NA[:, column] = [MEASURES[measures[name]].of(text) for text in texts]
    return values_NA
