"""RewardBench 2's files and rules: readers, best of four, and the pairs of subset Ties."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.attributes import shipped
from data.conversation import Rejected
from data.measures import share_interval
from data.reward_bench2 import (
    SUBSETS,
    RankedPrompt,
    ScoredPrompt,
    credit,
    read_ranked,
    score,
    subset_accuracies,
    ties_credits,
)

SCHEMA = shipped("helpsteer")
RECORD = {"id": "7", "prompt": "Is it?", "chosen": ["Yes."], "rejected": ["No.", "Hm.", "?"], "subset": "Math"}
TIED = RECORD | {"id": "tied:0", "chosen": ["Red.", "Blue."], "subset": "Ties"}


def read(tmp_path: Path, *records: Any, limit: int = 0) -> list[RankedPrompt | Rejected]:
    file = tmp_path / "ranked.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return list(read_ranked(str(file), SCHEMA, limit))


def scored(id: str, scores: list[float], num_correct: int = 1, subset: str = "Ties") -> ScoredPrompt:
    return ScoredPrompt(id, subset, num_correct, np.array(scores, float))


def test_a_prompt_comes_with_all_its_answers_the_right_ones_first(tmp_path: Path) -> None:
    one, tied = read(tmp_path, RECORD | {"num_correct": 1, "models": ["a"], "additional_metadata": {}}, TIED)
    assert isinstance(one, RankedPrompt)
    assert isinstance(tied, RankedPrompt)
    assert (one.id, one.subset, one.num_correct) == ("7", "Math", 1)
    assert [a.messages[-1].content for a in one.answers] == ["Yes.", "No.", "Hm.", "?"]
    assert [a.id for a in tied.answers] == [f"000000001-{place:03d}" for place in range(5)]
    assert tied.num_correct == 2


def test_parquet_as_the_hub_has_it_reads_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([RECORD, TIED]), tmp_path / "test-00000-of-00001.parquet")
    assert list(read_ranked(str(tmp_path / "test-00000-of-00001.parquet"), SCHEMA)) == read(tmp_path, RECORD, TIED)


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("{", "broken_json", ""),
        ({"prompt": "a"}, "missing_column", "no column 'subset'"),
        (RECORD | {"chosen": "Yes."}, "wrong_type", "'chosen' is a string, it must be a list"),
        (RECORD | {"rejected": []}, "no_answer", "column 'rejected' has no answer"),
        (RECORD | {"rejected": ["No.", 3]}, "wrong_type", "'rejected' is a number"),
        (RECORD | {"rejected": ["No.", " "]}, "empty_message", "answer 3: turns: user, assistant (empty)"),
        (RECORD | {"chosen": ["Yes.", "Sure."]}, "several_chosen", "subset Math has 2 chosen answers"),
        (RECORD | {"num_correct": 2}, "wrong_number", "num_correct is not 1"),
        (TIED | {"id": "0"}, "wrong_id", "neither tied:NUMBER nor ref:NUMBER"),
        (TIED, "repeated_id", "id 'tied:0' of subset Ties is there twice"),
    ],
)
def test_a_broken_record_is_kept_with_its_reason(tmp_path: Path, record: Any, reason: str, detail: str) -> None:
    first, second = read(tmp_path, TIED, record)
    assert isinstance(first, RankedPrompt)
    assert isinstance(second, Rejected)
    assert (second.line, second.reason) == (2, reason)
    assert detail in second.detail


def test_a_limit_counts_what_is_kept(tmp_path: Path) -> None:
    assert len(read(tmp_path, "{", RECORD, RECORD, RECORD, limit=2)) == 3


def test_the_highest_score_wins_and_several_highest_share() -> None:
    assert [credit(np.array(scores)) for scores in ([3, 1, 2, 0], [2, 1, 2, 0], [1, 1, 1, 1], [0, 1, 0, 0])] == [
        1,
        0.5,
        0.25,
        0,
    ]


def test_ties_reward_a_wide_gap_and_a_narrow_spread() -> None:
    """tied: right 5 and 4 (spread 1), wrong 2 (gap 2); ref: gap .5, which is narrower than the spread."""
    pair = [scored("tied:0", [5, 4, 2], 2), scored("ref:0", [3, 2.5])]
    assert ties_credits(pair) == pytest.approx([0.3 + 0.3 + 0.2 + 0.01 * np.tanh(-0.5)])
    # All that can be had: the ref's gap is as wide as the tied prompt's.
    wide = [scored("tied:0", [5, 4, 2], 2), scored("ref:0", [9, 2])]
    assert ties_credits(wide) == pytest.approx([1 + 0.01 * np.tanh(1)])
    # Equal right answers: any gap is wider than no spread; a wrong answer in front: below it.
    assert ties_credits([scored("tied:0", [4, 4, 2], 2), scored("ref:0", [9, 2])]) == pytest.approx([1.01])
    assert ties_credits([scored("tied:0", [4, 4, 6], 2), scored("ref:0", [1, 2])]) == pytest.approx([-0.01])
    assert ties_credits([scored("tied:0", [4, 4, 4], 2), scored("ref:0", [2, 2])]) == [0]
    assert ties_credits([scored("tied:0", [5, 4, 2], 2), scored("ref:1", [9, 2])]) == [], "no partner"


def test_every_subset_counts_alike() -> None:
    prompts = [scored(str(i), [1, 0, 0, 0], subset="Math") for i in range(9)]
    prompts += [scored("0", [0, 1, 0, 0], subset="Focus"), scored("tied:0", [5, 4, 2], 2), scored("ref:0", [9, 2])]
    found = subset_accuracies(prompts)
    assert list(found) == ["Math", "Focus", "Ties"], "the benchmark's order"
    assert {name: row["n"] for name, row in found.items()} == {"Math": 9, "Focus": 1, "Ties": 1}
    assert (found["Math"]["low"], found["Math"]["high"]) == share_interval(1, 9)
    total = score(found)
    assert total["accuracy"] == pytest.approx((1 + 0 + found["Ties"]["accuracy"]) / 3)
    assert total["low"] < total["accuracy"] < total["high"]
    assert total["missing"] == [name for name in SUBSETS if name not in found]
