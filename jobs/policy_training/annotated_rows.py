"""What a bootstrap round takes of the annotated rows, by Ray tasks over their files: combinations, questions, rows.

Each can be taken of parts of the rows first: counts add up, and what is drawn from all was drawn from its part.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from data.attributes import AttributeSchema
from data.calibration import Calibration
from data.conversation import Conversation
from data.prompts import Question, combination_counts, drawn, drawn_questions, last_questions
from data.shards import Input
from data.storage import Storage
from jobs.pipelines.over_files import over_files, rows_in


def seen_combinations(rows: Storage, schema: AttributeSchema, as_label: Calibration) -> Counter[tuple[int, ...]]:
    """How often each combination of predicted labels is there."""
    total: Counter[tuple[int, ...]] = Counter()
    for counts in over_files("combinations", rows, _combinations, schema, as_label):
        total.update(counts)
    return total


def _combinations(files: Sequence[Input], schema: AttributeSchema, as_label: Calibration) -> Counter[tuple[int, ...]]:
    values = (v for row in rows_in(files) for v in map(as_label, row.predicted) if v)
    return combination_counts(values, schema)


def some_questions(rows: Storage, num_prompts: int, seed: int) -> list[Question]:
    """`num_prompts` last questions."""
    return drawn_questions(
        chain.from_iterable(over_files("questions", rows, _questions, num_prompts, seed)), num_prompts, seed
    )


def _questions(files: Sequence[Input], num_prompts: int, seed: int) -> list[Question]:
    return drawn_questions(last_questions(rows_in(files)), num_prompts, seed)


def some_rows(rows: Storage, most: int, seed: str) -> list[Conversation]:
    """`most` rows, drawn by their ids."""
    parts = over_files("mixed rows", rows, _rows, most, seed)
    return drawn(chain.from_iterable(parts), most, seed, name=_id)


def _rows(files: Sequence[Input], most: int, seed: str) -> list[Conversation]:
    return drawn(rows_in(files), most, seed, name=_id)


def _id(row: Conversation) -> str:
    return row.id
