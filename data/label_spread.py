"""Predicted values of a sample of a folder's rows, for labels by rank. Knows no model.

Every so many files are read, and of each the one column: a folder of any size costs about the same.
"""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes import AttributeSchema
from data.calibration import Calibration, spread_by_rank
from data.errors import UserError
from data.storage import Storage

MAX_FILES = 100
"""Files that are read: rows come mixed, so that 100 files of 256 or more tell the ranks within a percent."""


def label_spread(rows: Storage, schema: AttributeSchema) -> Calibration:
    """Labels by rank among the answers of annotated `rows`; raises UserError if none is annotated."""
    files = rows.files(".parquet")
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, MAX_FILES).astype(int))] if files else []
    parts = [_predicted(file, rows, schema) for file in chosen]
    values_NA = np.concatenate([np.zeros((0, len(schema.names)), np.float32), *parts])
    if not len(values_NA):
        raise UserError(
            f"policy.spread_labels needs annotated answers, and there are none in {rows.uri}; run stage annotated first"
        )
    return spread_by_rank(values_NA, schema)


def _predicted(file: str, rows: Storage, schema: AttributeSchema) -> np.ndarray:
    """float32 [N, A], NaN where an answer was not read."""
    column = pq.read_table(file, columns=["predicted"], filesystem=rows.arrow_fs).column("predicted").combine_chunks()
    answers = pc.list_flatten(column)
    columns = [answers.field(name).to_numpy(zero_copy_only=False) for name in schema.names]
    return (
        np.stack(columns, axis=1).astype(np.float32) if len(answers) else np.zeros((0, len(schema.names)), np.float32)
    )
