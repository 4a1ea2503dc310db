"""The folder of a stage: what no stage of ours left is never removed, whatever it is called. No Ray."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.stages import demo_run, stage_of

from data.errors import UserError
from jobs.runner.stage import perform


def _foreign(folder: Path) -> None:
    """A folder of somebody else, called as a stage."""
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("mine")


def _as_it_was(folder: Path) -> bool:
    return [p.name for p in folder.iterdir()] == ["train.jsonl"] and (folder / "train.jsonl").read_text() == "mine"


@pytest.mark.case("02-stage-folder-is-mine")
@pytest.mark.parametrize("resumes", [True, False])
def test_a_folder_that_no_stage_made_is_left_alone(tmp_path: Path, resumes: bool) -> None:
    _foreign(tmp_path / "demo" / "a")
    stage, calls = stage_of("a", calls := []), calls
    with pytest.raises(UserError, match=r"holds train.jsonl, but no manifest.json and no progress.json.*set `run`"):
        perform(demo_run(tmp_path), replace(stage, resumes=resumes))
    assert _as_it_was(tmp_path / "demo" / "a")
    assert calls == []


OTHERS_MARKS = {
    "another tool's manifest": ("manifest.json", '{"name": "my app"}', "is not as this version writes it"),
    "an empty manifest": ("manifest.json", "{}", "is not as this version writes it"),
    "a list as manifest": ("manifest.json", "[]", "is not as this version writes it"),
    "a manifest cut short": ("manifest.json", '{"stage": "a', "is no JSON"),
    "another tool's progress": ("progress.json", '{"done": 3}', "holds"),
    "a list as progress": ("progress.json", "[1]", "holds"),
    "progress that is no JSON": ("progress.json", "50 %", "holds"),
    "nested too deep": ("progress.json", "[" * 100_000, "holds"),
}


@pytest.mark.case("A2, A4: marks that are not ours")
@pytest.mark.parametrize("kind", OTHERS_MARKS)
def test_a_mark_of_somebody_else_is_none(tmp_path: Path, kind: str) -> None:
    name, content, said = OTHERS_MARKS[kind]
    folder = tmp_path / "demo" / "a"
    folder.mkdir(parents=True)
    (folder / name).write_text(content)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=said) as caught:
        perform(demo_run(tmp_path), replace(stage_of("a", []), resumes=True))
    assert (folder / name).read_text() == content
    assert (folder / "mine.txt").read_text() == "mine"
    assert "\n" not in str(caught.value)


@pytest.mark.case("A2: links")
@pytest.mark.parametrize("marked", [True, False])
def test_a_stage_does_not_follow_links(tmp_path: Path, marked: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    _foreign(elsewhere)
    if marked:
        (elsewhere / "progress.json").write_text('{"fingerprint": "f", "inputs": {}}')
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "a").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a symbolic link"):
        perform(demo_run(tmp_path), stage_of("a", []))
    assert (elsewhere / "train.jsonl").read_text() == "mine"


@pytest.mark.case("A2: links")
def test_a_link_in_a_folder_of_ours_goes_and_what_it_names_stays(tmp_path: Path) -> None:
    run, elsewhere = demo_run(tmp_path), tmp_path / "elsewhere"
    _foreign(elsewhere)
    with pytest.raises(RuntimeError):
        perform(run, stage_of("a", ["boom"]))
    for name in ("folder", "file"):
        (tmp_path / "demo" / "a" / name).symlink_to(elsewhere / ("train.jsonl" if name == "file" else "."))
    perform(run, stage_of("a", []))
    assert _as_it_was(elsewhere)
    assert run.folder("a").names() == ["files.json", "manifest.json", "out.json", "progress.json"]


@pytest.mark.case("A2: a file put into a finished stage")
def test_a_foreign_file_in_a_finished_stage_survives_its_nextdemo_run(tmp_path: Path) -> None:
    perform(demo_run(tmp_path), stage_of("a", []))
    notes = tmp_path / "demo" / "a" / "notes.txt"
    notes.write_text("mine")
    assert perform(demo_run(tmp_path), stage_of("a", [])).skipped
    with pytest.raises(UserError, match=r"must be made again, but notes.txt there is no file of it.*nothing was"):
        perform(demo_run(tmp_path, "seed=7"), stage_of("a", []))
    assert notes.read_text() == "mine"
    assert (notes.parent / "out.json").exists()
    notes.unlink()
    perform(demo_run(tmp_path, "seed=7"), stage_of("a", []))


def _killed(path: str) -> None:
    if path.endswith("out.json"):
        raise KeyboardInterrupt
    os.unlink(path)


def test_a_stage_killed_while_it_cleared_its_folder_is_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform(demo_run(tmp_path), stage_of("a", []))
    with monkeypatch.context() as patched:
        patched.setattr(os, "remove", _killed)
        with pytest.raises(KeyboardInterrupt):
            perform(demo_run(tmp_path, "seed=7"), stage_of("a", []))
    assert (tmp_path / "demo" / "a" / "out.json").exists()
    assert not perform(demo_run(tmp_path), stage_of("a", [])).skipped


@pytest.mark.case("A2: run is one folder")
@pytest.mark.parametrize("name", ["..", ".", "/", "", "a/../..", "../a", "/etc", "a/b", "a\n", "a\\b", "ä", "a b"])
def test_a_run_is_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(Exception, match="is not the name of one folder") as caught:
        demo_run(tmp_path, f"run={json.dumps(name)}")
    assert len(str(caught.value)) < 400


@pytest.mark.case("A2: a stage is below the run")
@pytest.mark.parametrize("name", ["..", "benchmarks/../../a", "a//b", "/a", ".", ""])
def test_a_stage_lies_below_itsdemo_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of one folder"):
        perform(demo_run(tmp_path), stage_of(name, []))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("A2: on an object store")
def test_on_an_object_store_too(s3: str, tmp_path: Path) -> None:
    run = demo_run(tmp_path, f"storage={s3}/stage-folder")
    mine = run.folder("a") / "train.jsonl"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds train.jsonl, but no manifest.json"):
        perform(run, stage_of("a", []))
    assert mine.read_text() == "mine"
    with pytest.raises(RuntimeError):
        perform(run, stage_of("b", ["boom"]))
    (run.folder("b") / "stray").write_bytes(b"x")
    perform(run, stage_of("b", []))
    assert run.folder("b").names() == ["files.json", "manifest.json", "out.json", "progress.json"]
