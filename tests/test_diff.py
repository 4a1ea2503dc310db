"""`jobs.diff` on runs that were made by hand: what differs is named with its place and size, and nothing else is."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.finished_run import finished
from support.manifests import manifest

from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, Message, to_table
from data.run_layout import MANIFEST, PROGRESS, write_record
from data.shards import write
from data.stage_files import record_files
from data.storage import Storage
from jobs.diff import main
from jobs.diffing import rows as rows_module

SCHEMA = shipped("helpsteer")
ROWS = [
    Conversation(
        "s",
        "",
        (Message("user", f"q{n}"), Message("assistant", f"a{n}"), Message("user", "and"), Message("assistant", "so")),
        predicted=({"helpfulness": n % 5, "verbosity": 1.5}, {"helpfulness": 2.0}),
    )
    for n in range(23)
]
PART = 6


def stage(
    folder: Storage,
    rows: Sequence[Conversation] = ROWS,
    *,
    per_part: int = PART,
    schema: AttributeSchema = SCHEMA,
    settings: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    weights: bytes = b"weights",
) -> None:
    """A finished stage `annotated`, with rows and a model, in the run's folder."""
    for start in range(0, len(rows), per_part):
        table = to_table(rows[start : start + per_part], schema)
        write([table], table.schema, folder / "annotated" / "rows" / f"part-{start:05d}.parquet")
    (folder / "annotated" / "model" / "model.safetensors").write_bytes(weights)
    done = manifest("annotated").model_copy(
        update={
            "description": {"settings": settings or {}, "schema": schema.model_dump(mode="json")},
            "metrics": metrics or {},
            "files": record_files(folder / "annotated"),
        }
    )
    write_record(folder / "annotated" / MANIFEST, done)


def differ(capsys: pytest.CaptureFixture[str], a: Storage, b: Storage, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, lines and the last line of `jobs.diff`."""
    code = main([a.uri, b.uri, *words])
    *lines, last = capsys.readouterr().out.splitlines()
    return code, "\n".join(lines), json.loads(last)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Storage, Storage]:
    return Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))


def changed(number: int, **fields: Any) -> list[Conversation]:
    return [*ROWS[:number], replace(ROWS[number], **fields), *ROWS[number + 1 :]]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_equal_stages_are_equal_unread(
    where: str, runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    a, b = runs[0], runs[1] if where == "disk" else Storage("memory://diff")
    stage(a)
    stage(b)
    monkeypatch.setattr(rows_module, "compared_columns", None)
    code, lines, last = differ(capsys, a, b)
    assert (code, last["equal"]) == (0, True)
    assert last["stages"]["annotated"] == {"differs": [], "seconds": [12.5, 12.5], "rows_unread": True}
    assert "equal" in lines


def test_only_files_whose_digests_differ_are_read(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    stage(runs[0])
    stage(runs[1], changed(8, truncated=True))
    read: list[str] = []
    columns = rows_module.compared_columns
    monkeypatch.setattr(rows_module, "compared_columns", lambda part: read.append(part.file.uri) or columns(part))
    code, lines, _ = differ(capsys, *runs)
    assert code == 1
    assert [Path(uri).name for uri in read] == ["part-00006.parquet"] * 2
    assert "rows: other values of truncated (1 rows)" in lines


def test_runs_of_an_older_release_have_no_digests_and_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = finished(tmp_path / "a"), finished(tmp_path / "b")
    assert differ(capsys, one.root, other.root)[0] == 0
    shutil.copy(tmp_path / "a/demo/rows/rows/part-0.parquet", tmp_path / "b/demo/annotated/rows/part-0.parquet")
    code, _, last = differ(capsys, one.root, other.root)
    assert code == 1
    assert last["stages"]["annotated"]["differs"] == ["labels"]
    assert last["stages"]["annotated"]["rows"]["rows"]["labels"]["predicted"]["humor"]["rated_in_one"] == 10


def test_labels_are_compared_per_attribute(runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]) -> None:
    stage(runs[0])
    rows = changed(3, predicted=({"helpfulness": 3.25, "verbosity": 1.5}, {"helpfulness": 0.5}))
    rows[10] = replace(rows[10], predicted=({"helpfulness": 0.0}, {"helpfulness": 2.25}))
    stage(runs[1], rows)
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    found = last["stages"]["annotated"]
    assert found["differs"] == ["labels"]
    assert found["rows"]["rows"]["relabeled"] == 2
    assert found["rows"]["rows"]["labels"] == {
        "predicted": {
            "helpfulness": {
                "rows": 2,
                "answers": 3,
                "total": 2.0,
                "mean": 2 / 3,
                "rated_in_one": 0,
                "largest": -1.5,
                "largest_id": ROWS[3].id,
            },
            "verbosity": {
                "rows": 1,
                "answers": 0,
                "total": 0,
                "mean": 0,
                "rated_in_one": 1,
                "largest": 0,
                "largest_id": "",
            },
        }
    }
    assert f"predicted.helpfulness     2        3          0.67    -1.50  {ROWS[3].id}" in lines
    _, _, last = differ(capsys, *runs, "tolerance=0.25")
    labels = last["stages"]["annotated"]["rows"]["rows"]["labels"]["predicted"]
    assert labels["helpfulness"]["rows"] == 1


@pytest.mark.parametrize("bucket_rows", [1, 5, 1000])
def test_other_rows_are_found_by_id_in_buckets_of_any_size(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], bucket_rows: int
) -> None:
    stage(runs[0], ROWS[:20])
    other = changed(4, predicted=({"helpfulness": 0.0}, {"helpfulness": 2.0}))
    other[7] = replace(other[7], messages=(*other[7].messages[:3], Message("assistant", "else")))
    stage(runs[1], other[2:][::-1], per_part=9)
    code, lines, last = differ(capsys, *runs, f"bucket_rows={bucket_rows}")
    found = last["stages"]["annotated"]["rows"]["rows"]
    assert code == 1
    assert found["rows"] == [20, 21]
    assert [only["count"] for only in found["only"]] == [2, 3]
    assert set(found["only"][0]["first"]) == {row.id for row in ROWS[:2]}
    assert set(found["only"][1]["first"]) == {row.id for row in ROWS[20:]}
    assert found["texts"] == {"count": 1, "first": [ROWS[7].id]}
    assert found["labels"]["predicted"]["helpfulness"]["largest"] == -4
    assert found["labels"]["predicted"]["verbosity"]["rated_in_one"] == 1
    assert last["stages"]["annotated"]["differs"] == ["rows", "labels"]
    assert "2 of 20 rows in a alone" in lines
    assert "3 of 21 rows in b alone" in lines


@pytest.mark.parametrize("turned", [True, False])
def test_the_same_rows_in_another_order_or_cut_are_said_to_be_so(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], turned: bool
) -> None:
    stage(runs[0])
    stage(runs[1], ROWS[::-1] if turned else ROWS, per_part=PART if turned else 7)
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    assert last["stages"]["annotated"]["differs"] == ["rows"]
    assert "rows: rows in other files or in another order" in lines
    assert last["stages"]["annotated"]["rows"]["rows"]["only"] == [{"count": 0, "first": []}] * 2


def test_renamed_files_are_found_by_their_digests(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for run in runs:
        stage(run)
    rows = Path(runs[1].path) / "annotated" / "rows"
    os.rename(rows / "part-00000.parquet", rows / "part-99999.parquet")
    done = manifest("annotated")
    write_record(runs[1] / "annotated" / MANIFEST, done)
    monkeypatch.setattr(rows_module, "compared_columns", None)
    _, lines, last = differ(capsys, *runs)
    assert last["stages"]["annotated"]["rows"]["rows"]["reordered"]
    assert "rows in other files" in lines


def test_ids_are_listed_up_to_a_limit(runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]) -> None:
    stage(runs[0])
    stage(runs[1], ROWS[:12])
    _, lines, last = differ(capsys, *runs, "shown=2")
    assert last["stages"]["annotated"]["rows"]["rows"]["only"][0] == {"count": 11, "first": [r.id for r in ROWS[12:14]]}
    assert f"11 of 23 rows in a alone: {ROWS[12].id}, {ROWS[13].id} and 9 more" in lines


def test_settings_are_paths_and_told_once(runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]) -> None:
    for run, epochs in zip(runs, (2, 3), strict=True):
        stage(run, settings={"learner": {"epochs": epochs}})
        done = manifest("policy").model_copy(update={"description": {"settings": {"learner": {"epochs": epochs}}}})
        write_record(run / "policy" / MANIFEST, done.model_copy(update={"finished": "2026-11-22T13:00:00Z"}))
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    assert [found["settings"] for found in last["stages"].values()] == [{"settings.learner.epochs": [2, 3]}] * 2
    assert lines.count("settings.learner.epochs: 2 -> 3") == 1
    assert lines.endswith("policy\n  1 more, as in the stages above")


def test_metrics_are_side_by_side_and_costs_count_for_nothing(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    costs = [{"rows_per_s": 1.0, "train_seconds": 2.0, "uri": "/runs/a"}, {"rows_per_s": 3.0, "uri": "s3://runs/b"}]
    for run, found in zip(runs, costs, strict=True):
        stage(run, metrics=found)
    assert differ(capsys, *runs)[0] == 0
    for run, found, spearman in zip(runs, costs, (0.91234, 0.5), strict=True):
        stage(run, metrics={**found, "aaa": spearman, "steering": {"humor": {"spearman": spearman}}})
    code, lines, last = differ(capsys, *runs, "shown=1")
    assert code == 1
    assert last["stages"]["annotated"]["differs"] == ["metrics"]
    assert last["stages"]["annotated"]["metrics"]["rows_per_s"] == [1, 3]
    assert "steering.humor.spearman  0.9123  0.5" in lines
    assert "and 1 more metrics, in the last line" in lines


def test_models_differ_by_size_or_content_and_pages_count_for_nothing(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    for run in runs:
        stage(run)
        (run / "annotated" / "model" / "README.md").write_bytes(run.uri.encode())
    assert differ(capsys, *runs)[0] == 0
    stage(runs[1], weights=b"wEights")
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    assert last["stages"]["annotated"]["differs"] == ["model"]
    assert "files that differ: model/model.safetensors" in lines


def test_other_tables_than_rows_differ_by_file(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, run in enumerate(runs):
        for part in range(2):
            table = to_table(ROWS[: 1 + part * number], SCHEMA).select(["id"]).replace_schema_metadata(None)
            write([table], table.schema, run / "annotated" / "examples" / f"{part}.parquet")
        stage(run)
    _, _, last = differ(capsys, *runs)
    assert last["stages"]["annotated"]["differs"] == ["other tables"]
    assert last["stages"]["annotated"]["files"] == ["examples/1.parquet"]


def test_unfinished_and_missing_stages_are_named(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    for run in runs:
        stage(run)
    write_record(runs[0] / "policy" / MANIFEST, manifest("policy"))
    (runs[1] / "policy" / PROGRESS).write_bytes(b"{}")
    write_record(runs[0] / "report" / MANIFEST, manifest("report"))
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    assert last["stages"]["policy"] == {"differs": ["unfinished in b"], "seconds": [12.5, None]}
    assert last["stages"]["report"]["differs"] == ["missing in b"]
    assert "unfinished in b, so nothing of it is compared; `python -m jobs.run` with its preset goes on" in lines


def test_runs_of_other_attributes_are_compared_in_those_that_both_have(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    stage(runs[0])
    longer = SCHEMA.attributes[-1].model_copy(update={"high": 9})
    other = [a for a in SCHEMA.attributes if a.name != "coherence"][:-1]
    stage(runs[1], schema=AttributeSchema(name="mine", attributes=(*other, longer)))
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    assert (
        "The runs have different attributes: coherence in a alone; verbosity on another scale; labels are compared for "
        "helpfulness, correctness, complexity."
    ) in lines
    assert last["stages"]["annotated"]["differs"] == ["settings"]


def _mistakes(a: Storage, b: Storage) -> dict[str, tuple[list[str], str]]:
    empty = Storage(f"{a.uri}-empty")
    os.makedirs(empty.path)
    os.symlink(a.path, f"{a.path}-link")
    return {
        "one": ([a.uri], "the first two words must be runs; usage: python -m jobs.diff RUN RUN"),
        "flag": ([a.uri, b.uri, "--all"], "unknown flag --all"),
        "setting": ([a.uri, b.uri, "showm=3"], "showm"),
        "same": ([a.uri, a.uri + "/"], "are the same folder; give two runs"),
        "link": ([a.uri, f"{a.uri}-link"], "are the same folder; give two runs"),
        "empty": ([a.uri, empty.uri], "is no run: there is no stage's manifest.json in it; give the folder of a run"),
        "absent": ([a.uri, f"{a.uri}-none"], "is no run"),
        "stage": ([a.uri, f"{b.uri}/annotated"], "is the folder of one stage; give the folder of a run, STORAGE/RUN"),
        "storage": ([os.path.dirname(a.uri), b.uri], "a/annotated/manifest.json is that of stage 'annotated'"),
        "protocol": ([a.uri, "s4://bucket/run"], "has the protocol 's4', which is not known"),
    }


def test_mistakes_are_one_sentence(runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]) -> None:
    for run in runs:
        stage(run)
    for name, (words, sentence) in _mistakes(*runs).items():
        assert main(words) == 2, name
        printed = capsys.readouterr()
        assert sentence in printed.err, name
        assert (printed.out, printed.err.count("\n")) == ("", 1), name


def test_a_torn_file_is_a_sentence_that_names_it(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    stage(runs[0])
    stage(runs[1], changed(3, truncated=True))
    (runs[1] / "annotated" / "rows" / "part-00006.parquet").write_bytes(b"PAR1 torn")
    assert main([run.uri for run in runs]) == 2
    assert "part-00006.parquet is no whole Parquet file" in capsys.readouterr().err


def test_help_has_exit_codes_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "0 = equal, 1 = the runs differ, 2 = a mistake" in printed
    assert "tolerance" in printed
