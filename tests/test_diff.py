"""`jobs.diff` on runs that were made by hand: what differs is named with its place and size, and nothing else is."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.diffs import ROWS, SCHEMA, changed, differ, stage
from support.finished_run import finished
from support.manifests import manifest

from data.attributes import AttributeSchema
from data.conversation import to_table
from data.run_layout import MANIFEST, PROGRESS, write_record
from data.shards import write
from data.storage import Storage
from jobs.diff import main
from jobs.diffing import rows as rows_module


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Storage, Storage]:
    return Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))


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
