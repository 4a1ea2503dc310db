"""The annotation worker: long conversations, counters, refusals. Scores themselves: `test_predictor`."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.scoring.annotator import Annotator
from actors.scoring.predictor import Predictor
from actors.scoring.preprocessor import AnnotatorInput, kept_end
from data.attributes import SchemaMismatch, shipped
from data.conversation import Conversation, Message, from_table, to_table
from data.counters import counters_of
from data.lab import Lab, LabSettings
from data.shards import packed
from data.tokens import Tokens

SCHEMA = shipped("lab")
ARGUMENTS = {
    "schema": SCHEMA,
    "fingerprint": "f",
    "pack_tokens": 256,
    "max_tokens": 128,
    "dtype": "float32",
    "num_threads": 1,
}


def _conversation(*contents: str) -> Conversation:
    return Conversation("t", "", tuple(Message(("user", "assistant")[i % 2], c) for i, c in enumerate(contents)))


LONG = _conversation("Tell me.", "First.", "And? " * 80, "Second. " * 6)
SHORT = _conversation("Tell me about bees.", "Bees make honey.")


@pytest.mark.parametrize(
    ("over_long", "rated", "tokens"), [("keep_end", [False, True], 128), ("reject", [False, False], 0)]
)
def test_over_long_conversations_are_kept_flagged_and_counted(
    tiny_predictor: str, over_long: str, rated: list[bool], tokens: int
) -> None:
    annotator = Annotator(tiny_predictor, over_long=over_long, **ARGUMENTS)
    result = annotator(to_table([SHORT, LONG], SCHEMA))
    short, long = from_table(result)
    assert (short.truncated, long.truncated, long.tokens) == (False, True, tokens)
    assert [bool(v) for v in long.predicted] == rated
    assert [bool(v) for v in short.predicted] == [True]
    counters = counters_of(result.schema)
    assert (counters["answers"], counters["rated_answers"], counters["answers_cut_off"]) == (
        3,
        1 + sum(rated),
        2 - sum(rated),
    )
    assert (counters["truncated"], counters["over_long_unrated"]) == (1, over_long == "reject")
    assert counters["tokens"] == counters["filled_tokens"] == short.tokens + long.tokens
    assert counters["budget_tokens"] % 256 == 0
    sums = {name: sum(v[name] for r in (short, long) for v in r.predicted if v) for name in SCHEMA.names}
    assert {name: counters[f"sum/{name}"] for name in SCHEMA.names} == pytest.approx(sums, rel=1e-5)


def test_a_huge_message_costs_no_more_than_what_is_read_of_it(tiny_predictor: str) -> None:
    huge = _conversation("word " * 100_000, "Yes.", "x" * 300_000, "No.")
    annotator = Annotator(tiny_predictor, **ARGUMENTS)
    started = time.process_time()
    prepared = Annotator.companion(ARGUMENTS | {"predictor": tiny_predictor})(to_table([huge, SHORT], SCHEMA))
    assert [len(ids) for ids in prepared.column("ids")] == [128, len(prepared.column("ids")[1])]
    assert prepared.column("whole_tokens")[0].as_py() > 100_000
    done, _ = from_table(annotator(prepared))
    assert time.process_time() - started < 20
    assert (done.truncated, done.tokens, [bool(v) for v in done.predicted]) == (True, 128, [False, True])


def test_any_text_is_read(tiny_predictor: str) -> None:
    rows = [
        _conversation(q, a)
        for q, a in [
            ("😀👩‍👩‍👧", "你好，世界"),
            ("שלום مرحبا", "\u202eabc\u0000\x07"),
            (" ", "<extra_id_2>humor:4"),
            ("", ""),
        ]
    ]
    assert all(
        r.predicted[0] and np.isfinite(list(r.predicted[0].values())).all()
        for r in Annotator(tiny_predictor, **ARGUMENTS).annotated(rows)
    )


def test_tokenising_elsewhere_changes_nothing(tiny_predictor: str) -> None:
    rows = to_table(Lab(LabSettings(num_rows=20)).rows(), SCHEMA)
    annotator = Annotator(tiny_predictor, **ARGUMENTS)
    prepared = AnnotatorInput(tiny_predictor, "f", 128)(rows)
    assert packed(annotator(prepared)) == packed(annotator(rows))
    assert annotator(rows).schema.names == rows.schema.names


def test_a_batch_of_no_rows_stays_one(tiny_predictor: str) -> None:
    result = Annotator(tiny_predictor, **ARGUMENTS)(to_table([], SCHEMA))
    assert len(result) == 0
    assert counters_of(result.schema)["answers"] == 0


def test_rows_of_another_schema_are_refused(tiny_predictor: str) -> None:
    annotator = Annotator(tiny_predictor, **ARGUMENTS)
    with pytest.raises(SchemaMismatch, match=r"the run has attribute schema 'lab'.*the rows has 'helpsteer'"):
        annotator(to_table([SHORT], shipped("helpsteer")))
    with pytest.raises(ValueError, match="the rows carries no attribute schema"):
        annotator(pa.table({"id": ["a"]}))


@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_corrupt_checkpoint_is_one_sentence(tiny_predictor: str, tmp_path: Path, damage: str) -> None:
    for file in Path(tiny_predictor).iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.name == damage else content)
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        Predictor.load(str(tmp_path))


def test_the_end_is_kept_with_the_turns_that_end_in_it() -> None:
    tokens = Tokens(np.arange(6), np.ones(6, bool), np.array([1, 5]))
    kept = kept_end(tokens, 4)
    assert (kept.ids_T.tolist(), kept.turn_ends_S.tolist(), kept.num_dropped_turns) == ([2, 3, 4, 5], [3], 1)
    assert len(kept_end(tokens, 6)) == 6
