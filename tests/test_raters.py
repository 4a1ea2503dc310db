"""Several raters of one answer: their mean, how many they are, and how far they are apart."""

import json
from pathlib import Path

import pytest
from support.source_lines import line, run_of

from data.conversation import Conversation, from_table
from jobs.prepare import work
from jobs.runner.stage import Run


def _kept(run: Run) -> list[Conversation]:
    return [row for table in (run.folder("rows") / "rows").tables() for row in from_table(table)]


@pytest.mark.case("A6: a second rater")
@pytest.mark.parametrize("order", [(4, 1, 1), (1, 4, 1), (1, 1, 4)])
def test_several_raters_of_an_answer_are_one_row_with_their_mean(tmp_path: Path, order: tuple[int, ...]) -> None:
    others = [line(f"q{i}", humor=3) for i in range(4)]
    lines = [others[0], line("q", humor=order[0]), *others[1:], *(line("q", humor=value) for value in order[1:])]
    run = run_of(tmp_path, lines)
    metrics = work(run, run.folder("rows"))
    alone = run_of(tmp_path, lines[:5], "run=alone")
    work(alone, alone.folder("rows"))
    assert [row.human[0]["humor"] for row in _kept(run)] == [3, 2, 3, 3, 3]
    assert [(row.id, row.group) for row in _kept(run)] == [(row.id, row.group) for row in _kept(alone)]
    expected = {"read": 7, "rows": 5, "answers": 5, "rated_answers": 5, "merged": 2, "several_raters": 1}
    assert metrics.counts["mine"] == expected
    assert metrics.rater_spread == {"mine": {"humor": 1.7321}}
    assert metrics.rows == 5


@pytest.mark.case("A6: a duplicate")
def test_the_same_row_with_the_same_ratings_is_a_duplicate(tmp_path: Path) -> None:
    lines = [line("q", humor=0.1), line("unrated"), line("q", humor=0.1), line("unrated"), line("q", humor=0.1)]
    run = run_of(tmp_path, lines)
    metrics = work(run, run.folder("rows"))
    once = run_of(tmp_path, lines[:2], "run=once")
    work(once, once.folder("rows"))
    assert metrics.counts["mine"]["duplicate"] == 3
    assert metrics.rater_spread == {}
    assert "merged" not in metrics.counts["mine"]
    part = "rows/part-00000.parquet"
    assert Path((run.folder("rows") / part).path).read_bytes() == Path((once.folder("rows") / part).path).read_bytes()


@pytest.mark.case("A6: a rater of what was not rated")
def test_a_rating_that_comes_later_is_kept(tmp_path: Path) -> None:
    """The first row has none, or one of another attribute."""
    run = run_of(tmp_path, [line("a"), line("b", humor=1), line("a", humor=2), line("b", verbosity=3)])
    metrics = work(run, run.folder("rows"))
    assert [row.human[0] for row in _kept(run)] == [{"humor": 2.0}, {"humor": 1.0, "verbosity": 3.0}]
    assert metrics.counts["mine"]["rated_answers"] == 2
    assert metrics.counts["mine"]["merged"] == 2
    assert "several_raters" not in metrics.counts["mine"]


@pytest.mark.case("A6: a rater of an earlier answer")
def test_every_answer_of_a_dialogue_has_its_own_raters(tmp_path: Path) -> None:
    def dialogue(first: float | None, last: float | None) -> str:
        turns = [
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "attributes": {"humor": value}}]
            for value in (first, last)
        ]
        return json.dumps({"messages": turns[0] + turns[1]})

    run = run_of(tmp_path, [dialogue(1, None), dialogue(3, 4), dialogue(None, 0)])
    metrics = work(run, run.folder("rows"))
    assert [row.human for row in _kept(run)] == [({"humor": 2.0}, {"humor": 2.0})]
    assert (metrics.counts["mine"]["several_raters"], metrics.counts["mine"]["rated_answers"]) == (2, 2)
