"""Stage `rows`: what is kept, what is kept apart and counted, and when it refuses."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from support.manifests import metrics_of
from support.serial_rows import rejected_of
from support.source_lines import DEMO, line, run_of

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.conversation import from_table
from data.errors import UserError
from data.stage_metrics import RowsMetrics, StageMetrics
from jobs.prepare import STAGE, work
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError, perform


def test_rows_duplicates_and_rejections_are_counted_under_their_names(tmp_path: Path) -> None:
    lines = [line(f"q{i}", humor=i % 5) for i in range(7)] + [
        line("q0", humor=0),
        "{broken",
        line("q8", ""),
        line("q9", humor=7),
    ]
    run = run_of(tmp_path, lines, "rows.max_rejected=0.5")
    metrics = work(run, run.folder("rows"))
    assert metrics.rows == 7
    assert metrics.counts["mine"] == {
        "read": 11,
        "rows": 7,
        "answers": 7,
        "rated_answers": 7,
        "duplicate": 1,
        "rejected: broken_json": 1,
        "rejected: empty_message": 1,
        "rejected: rating_out_of_range": 1,
    }
    kept = [row for table in (run.folder("rows") / "rows").tables() for row in from_table(table)]
    assert [row.human[0]["humor"] for row in kept] == [float(i % 5) for i in range(7)]
    assert len((run.folder("rows") / "rows").files(".parquet")) == 3
    assert (run.folder("rows") / "rejected").names() == ["part-00000.jsonl"]
    rejected = rejected_of(run)
    assert [(r["line"], r["reason"]) for r in rejected] == [
        (9, "broken_json"),
        (10, "empty_message"),
        (11, "rating_out_of_range"),
    ]


def test_too_many_rejections_fail_the_stage_and_say_where_they_are(tmp_path: Path) -> None:
    run = run_of(tmp_path, [line("q"), "{broken", "{too"])
    with pytest.raises(
        StageError,
        match=r"2 of 3 records were rejected \(66\.7%\), rows\.max_rejected allows 1\.0%: "
        r".*in\.jsonl line 2: broken_json",
    ):
        perform(run, STAGE)
    assert run.manifest("rows") is None


def test_a_torn_file_fails_whatever_share_is_allowed(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(line(f"q{i}") for i in range(500)).encode())
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    sources = f"rows.sources=[{{name: mine, format: messages, uri: {tmp_path}/torn.jsonl.gz}}]"
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}/runs", sources, "rows.max_rejected=1"]))
    with pytest.raises(StageError, match=r"is broken from line .* on"):
        work(run, run.folder("rows"))


def test_a_changed_file_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, [line("a")])
    assert perform(run, STAGE).skipped is False
    assert perform(run, STAGE).skipped is True
    os.utime(tmp_path / "in.jsonl", (1e9, 1e9))
    assert perform(run, STAGE).skipped is True, "a date is no change: hours may depend on it"
    run = run_of(tmp_path, [line("a"), line("b")])
    assert metrics_of(perform(run, STAGE), RowsMetrics).rows == 2
    assert "changed: inputs" in capsys.readouterr().out


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    run = run_of(tmp_path, [])
    with pytest.raises(StageError, match="no row could be read from"):
        work(run, run.folder("rows"))
    broken = run_of(tmp_path, [line("q", humour=3)])
    with pytest.raises(
        StageError,
        match=r"1 records read, 1 rejected: .* line 1: misspelled_attribute .*'humour'.* did you mean 'humor'\?; "
        "all of them are in",
    ):
        work(broken, broken.folder("rows"))
    missing = Run(load(Preset, DEMO, ["rows.sources=[{name: x, format: messages, uri: /nowhere/x.jsonl}]"]))
    with pytest.raises(FileNotFoundError, match=r"nothing to read at /nowhere/x\.jsonl"):
        work(missing, missing.folder("rows"))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "{name: x, format: csv, uri: x.csv}",
            "unknown format 'csv'; allowed: helpsteer, .*, scored_text, iceberg, lab",
        ),
        (
            "{name: x, format: mesages, uri: x}",
            r"unknown format 'mesages' \(did you mean 'messages'\?\); allowed: .*",
        ),
        (
            "{name: x, format: messages}",
            "source 'x' of format messages has no uri: name a file, a folder or a glob",
        ),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence_before_anything_starts(source: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(Preset, DEMO, [f"rows.sources=[{source}]"])
    assert re.fullmatch(rf"rows\.sources\.0 on the command line: {sentence}", str(refused.value))


@pytest.mark.case("13-sources-of-one-name")
@pytest.mark.parametrize("names", [("x", "x"), ("x", "y", "x"), ("", "")])
def test_two_sources_of_one_name_are_refused(names: tuple[str, ...]) -> None:
    sources = ", ".join(f"{{name: '{name}', format: messages, uri: in{place}}}" for place, name in enumerate(names))
    with pytest.raises(
        SettingsError, match=rf"two sources are called '{names[0]}', .*give each of rows\.sources a name"
    ):
        load(Preset, DEMO, [f"rows.sources=[{sources}]"])


@pytest.mark.case("10-file-name-latin1")
@pytest.mark.parametrize(
    "name", [b"caf\xe9.jsonl", b"a::b.jsonl", b"100% [1] '\"\n\x1b.jsonl", "日本 é.jsonl".encode()]
)
def test_files_of_any_name_are_read_counted_and_named(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "in::put"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(line("q") + "\n{broken\n")
    sources = f"rows.sources=[{{name: mine, format: messages, uri: '{folder}'}}]"
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}/runs", sources, "rows.max_rejected=0.5"]))
    manifest = perform(run, STAGE).manifest
    assert metrics_of(perform(run, STAGE), RowsMetrics).rows == 1
    assert len(manifest.description["inputs"]) == 1
    [rejected] = rejected_of(run)
    assert os.fsencode(rejected["file"]).endswith(name)
    strict = Run(load(Preset, DEMO, [f"storage={tmp_path}/runs", sources]))
    with pytest.raises(StageError) as refused:
        perform(strict, STAGE)
    assert str(refused.value).isprintable()


@pytest.mark.case("19-folder-leftovers")
def test_files_that_are_passed_by_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, [line("a")], f"rows.sources=[{{name: mine, format: messages, uri: {tmp_path}}}]")
    for name in (".hidden.jsonl", "_temporary/0/part.jsonl", "more.csv", "more.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(line("b"))
    assert work(run, run.folder("rows")).rows == 1
    assert (
        "rows: mine: not read: 2 files of another suffix (more.csv, more.json) and "
        "2 files whose path has a name with . or _ at its start (.hidden.jsonl, part.jsonl); "
        "read is what ends in .jsonl, .jsonl.gz, .parquet"
    ) in capsys.readouterr().err


@pytest.mark.case("C14: sentences")
@pytest.mark.parametrize(
    "text", ["{" + "\x1b]0;x" * 99, json.dumps({"\x1b" * 999: 1}), line("q", **{"humo\nr" * 9: 1})]
)
def test_sentences_about_rejections_are_short_and_plain(tmp_path: Path, text: str) -> None:
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    for lines in ([text] * 5, [text] * 5 + [line("a", humor=1)]):
        run = run_of(folder, lines, "rows.max_rejected=0")
        try:
            metrics = work(run, run.folder("rows"))
            assert metrics.rows, "a name that is no attribute's is left alone"
        except StageError as error:
            sentence = str(error)
            assert len(sentence) <= 400, sentence
            assert sentence.isprintable()
            assert "in.jsonl line 1: " in sentence
            assert "demo/rows/rejected" in sentence


@pytest.mark.case("A4: the real rows")
@pytest.mark.parametrize("damage", ["deleted", "cut", "swapped"])
def test_damaged_rows_are_read_again_before_anybody_uses_them(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, [line(f"q{i}", humor=i % 5) for i in range(7)])
    perform(run, STAGE)
    parts = [tmp_path / "runs" / "demo" / "rows" / "rows" / f"part-0000{n}.parquet" for n in range(3)]
    whole = [part.read_bytes() for part in parts]
    if damage == "deleted":
        parts[1].unlink()
    else:
        parts[1].write_bytes(whole[1][:-9] if damage == "cut" else whole[0])
    reader = Stage("reader", ("rows",), lambda preset: {}, lambda run, folder: StageMetrics())
    with pytest.raises(StageError, match=r"stage reader needs rows, but of .* 1 of 3 files is .*part-00001.parquet"):
        perform(run, reader)
    assert not perform(run, STAGE).skipped
    assert "[rows] running: 1 of 3 files is " in capsys.readouterr().out
    assert [part.read_bytes() for part in parts] == whole
    perform(run, reader)


@pytest.mark.case("02-stage-folder-is-mine")
def test_a_source_that_lies_where_the_rows_go_is_not_deleted(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "rows" / "train.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text(line("q"))
    sources = f"rows.sources=[{{name: x, format: messages, uri: {mine}}}]"
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}", "run=mine", sources]))
    with pytest.raises(UserError, match=r"holds train.jsonl, but no manifest.json .* set `run` or `storage`"):
        perform(run, STAGE)
    assert mine.read_text() == line("q")


def test_a_folder_of_csv_files_is_a_source_too(tmp_path: Path) -> None:
    """The checksums looked for JSONL and Parquet only, and found nothing to read."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("t,s\nHa ha,3\n")
    columns = "{text: t, attributes: {humor: {column: s}}}"
    sources = f"rows.sources=[{{name: x, format: scored_text, uri: {tmp_path}/in, columns: {columns}}}]"
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}/runs", sources]))
    assert perform(run, STAGE).manifest.metrics["rows"] == 1
    (tmp_path / "in/b.csv").write_text("t,s\nHo ho,4\n")
    assert perform(run, STAGE).manifest.metrics["rows"] == 2
