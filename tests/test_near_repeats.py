"""Rows that are nearly an earlier one: which go, in any buckets; and what is counted."""

import random
from pathlib import Path

import pytest
from support.source_lines import line, run_of

from data.attributes import shipped
from data.conversation import Conversation, Message, arrow_schema, from_table, to_table
from data.diversity import shingles
from data.near_repeats import bands_of
from data.raters import RepeatCounts
from data.shards import Output, write
from data.splits import Split
from jobs.pipelines.read_sources import ReadSplit
from jobs.pipelines.tasks import HereCalls
from jobs.pipelines.unique_rows import ShuffleSizes, UniqueWriting
from jobs.prepare import work

SCHEMA = shipped("lab")
WORDS = [f"word{number}" for number in range(400)]


def _texts(draw: random.Random) -> list[list[str]]:
    """Texts, each followed by a copy with one word of 80 changed, and by one of which half is other words."""
    found = []
    for _ in range(25):
        text = draw.sample(WORDS, 80)
        near, far = text.copy(), text.copy()
        near[draw.randrange(80)] = "changed"
        far[::2] = draw.sample(WORDS, 40)
        found += [text, near, far]
    return found


def _row(number: int, text: list[str], source: str = "s") -> Conversation:
    return Conversation(source, "", (Message("user", "Q"), Message("assistant", " ".join(text))), id=f"{number:032d}")


def _kept(
    rows: list[Conversation], sources: list[int], near: dict[int, float], sizes: ShuffleSizes, output: Output
) -> tuple[list[int], dict[int, RepeatCounts]]:
    """The numbers of the rows that stay, and the counts."""
    pieces = []
    for source in sorted(set(sources)):
        own = [row for row, place in zip(rows, sources, strict=True) if place == source]
        split = Split(source, 0)
        write([to_table(own, SCHEMA)], arrow_schema(SCHEMA), output.pieces / split.piece)
        pieces.append(ReadSplit(split, {"rows": len(own)}))
    found = UniqueWriting(pieces, arrow_schema(SCHEMA), output, HereCalls(), sizes).write(10, near)
    return [int(row.id) for table in output.parts.tables() for row in from_table(table)], found.counts


def _jaccard(one: list[str], other: list[str]) -> float:
    a, b = shingles(" ".join(["q", *one])), shingles(" ".join(["q", *other]))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("sizes", [ShuffleSizes(), ShuffleSizes(40, 11, 1), ShuffleSizes(1000, 20, 1)])
def test_what_is_nearly_an_earlier_row_goes_whatever_the_buckets(tmp_path: Path, sizes: ShuffleSizes) -> None:
    texts = _texts(random.Random(5))
    assert all(_jaccard(texts[i], texts[i + 1]) > 0.9 for i in range(0, 75, 3))
    assert all(_jaccard(texts[i], texts[i + 2]) < 0.4 for i in range(0, 75, 3))
    rows = [_row(number, text) for number, text in enumerate(texts)]
    kept, counts = _kept(rows, [0] * 75, {0: 0.7}, sizes, Output(str(tmp_path / "rows"), "f"))
    assert kept == [number for number in range(75) if number % 3 != 1]
    assert counts == {0: RepeatCounts(rows=25, answers=25, near_duplicates=25)}


def test_other_sources_and_sources_without_a_threshold_do_not_matter(tmp_path: Path) -> None:
    texts = _texts(random.Random(6))[:3]
    rows = [_row(number, text) for number, text in enumerate(texts * 3)]
    sources = [0] * 3 + [1] * 3 + [2] * 3
    kept, counts = _kept(rows, sources, {0: 0.7, 2: 1.0}, ShuffleSizes(), Output(str(tmp_path / "rows"), "f"))
    assert kept == [0, 2, 3, 4, 5, 6, 7, 8]
    assert counts.keys() == {0}


def test_a_row_that_came_before_is_a_duplicate_and_not_a_near_one(tmp_path: Path) -> None:
    """Under their own names, and the ratings of both count."""
    long = " ".join(WORDS[:60])
    lines = [line("q", long, humor=1), line("q", long, humor=3), line("q", long + " more"), line("q", "short")]
    run = run_of(tmp_path, lines, "rows.sources.0.near_duplicates=0.8")
    metrics = work(run, run.folder("rows"))
    assert metrics.counts["mine"] == {
        "read": 4,
        "rows": 2,
        "answers": 2,
        "rated_answers": 1,
        "merged": 1,
        "near_duplicate": 1,
        "several_raters": 1,
    }
    rows = [row for table in (run.folder("rows") / "rows").tables() for row in from_table(table)]
    assert [row.human[0] for row in rows] == [{"humor": 2.0}, {}]


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95, 1.0])
def test_bands_fit_into_a_signature(threshold: float) -> None:
    bands, rows = bands_of(threshold)
    assert bands >= 1
    assert 1 <= bands * rows <= 128
