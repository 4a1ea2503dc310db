"""Contents of the models that a run starts from: other weights repeat what read them, and nothing is read twice."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.read_files import counted_reads
from support.stages import demo_run, stage_of

import jobs.annotate
import jobs.pretrain
import jobs.train_predictor
from data import source_checksums
from data.run_layout import MANIFEST, write_record
from data.stage_files import record_files
from data.storage import Storage
from jobs.policy_training.policy_stage import STAGE as POLICY
from jobs.runner.model_contents import INDEX, checked_models, write_index
from jobs.runner.stage import Run, Stage, _digest, perform

WEIGHTS = "model.safetensors"
STAGES = {
    "base": "base={{model: '{}'}}",
    "predictor": "predictor.backbone='{}'",
    "annotated": "annotate.raters=[{{kind: hf, model: '{}', attributes: {{humor: 0}}}}]",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(b"one")
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The local files whose content was read."""
    return counted_reads(monkeypatch)


def _stages() -> list[Stage]:
    """The real stages, but for their work."""
    real = (jobs.pretrain.STAGE, jobs.train_predictor.STAGE, jobs.annotate.STAGE, POLICY)
    return [stage_of("rows", []), *(replace(s, work=stage_of("", []).work, contents=lambda run: {}) for s in real)]


def _performed(run: Run) -> list[str]:
    """The stages that were not skipped."""
    return [stage.name for stage in _stages() if not perform(run, stage).skipped]


ALL = ["rows", "base", "predictor", "annotated", "policy"]


@pytest.mark.parametrize("is_uri", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_other_weights_in_the_folder_repeat_the_stages_that_read_them(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], stage: str, is_uri: bool
) -> None:
    run = demo_run(tmp_path, STAGES[stage].format(f"file://{model}" if is_uri else model))
    assert [_performed(run), _performed(run)] == [ALL, []]
    (model / "README.md").write_text("a file that no model is loaded from")
    os.utime(model / WEIGHTS, (1, 1))
    assert _performed(run) == []
    (model / WEIGHTS).write_bytes(b"two")  # as long as before
    capsys.readouterr()
    assert [_performed(run), _performed(run)] == [ALL[ALL.index(stage) :], []]
    assert f"[{stage}] running: changed: inputs." in capsys.readouterr().out


def test_a_store_is_asked_for_its_own_checksums() -> None:
    fs = fsspec.filesystem("memory")
    for name, content in (("config.json", b"{}"), (WEIGHTS, b"one"), ("README.md", b"read me")):
        fs.pipe_file(f"/contents/model/{name}", content)

    def content() -> str:
        return source_checksums.checked_folder("memory://contents/model", lambda name: name != "README.md").content()

    before = content()
    fs.pipe_file("/contents/model/README.md", b"read me again")
    assert content() == before
    fs.pipe_file(f"/contents/model/{WEIGHTS}", b"two")
    assert content() != before


def test_a_copy_has_the_same_content_and_another_name_has_not(tmp_path: Path, model: Path) -> None:
    def content(folder: Path) -> str:
        return source_checksums.checked_folder(str(folder), lambda name: True).content()

    before = content(model)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert content(copy) == before
    (copy / WEIGHTS).rename(copy / f"x-{WEIGHTS}")
    assert content(copy) != before


def test_a_start_reads_no_weights_again(tmp_path: Path, model: Path, read: list[str]) -> None:
    run = demo_run(tmp_path, *(override.format(model) for override in STAGES.values()))
    assert _performed(run) == ALL
    assert read.count(WEIGHTS) == len(STAGES)
    read.clear()
    assert _performed(run) == []
    assert read == []
    os.utime(model / WEIGHTS)
    assert _performed(run) == []
    assert read == [WEIGHTS] * len(STAGES), "a new date: read, and the same"


@pytest.fixture(params=["file", "package"])
def gguf(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """What base.model is, and the file that it names."""
    file = tmp_path / "site" / "weights.gguf"
    about = file.parent / "packed-1.0.dist-info"
    about.mkdir(parents=True)
    file.write_bytes(b"one")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: packed\nVersion: 1.0\n")
    (about / "RECORD").write_text("weights.gguf,,\n")
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # as where package gguf is installed
    return str(file) if request.param == "file" else "package:packed", file


def test_a_start_reads_no_gguf_file_again(tmp_path: Path, gguf: tuple[str, Path], read: list[str]) -> None:
    model, file = gguf
    run = demo_run(tmp_path, f"base={{model: '{model}'}}")
    assert (_performed(run), read) == (ALL, [file.name])
    manifest = run.manifest("base")
    assert manifest is not None
    assert manifest.description["inputs"] == source_checksums.checksums(str(file)), "as in runs of older releases"
    read.clear()
    assert (_performed(run), read) == ([], [])
    file.write_bytes(b"two")
    assert (_performed(run), read) == (ALL[1:], [file.name])


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": ["b"]}'])
def test_an_index_that_cannot_be_read_is_none(tmp_path: Path, model: Path, content: bytes) -> None:
    folder = Storage(str(tmp_path / "stage"))
    found = checked_models({"base.model": str(model)}, folder)
    write_index(found, folder)
    assert len((folder / INDEX).read_json()) == 2
    (folder / INDEX).write_bytes(content)
    assert checked_models({"base.model": str(model)}, folder) == found


def _made_by_an_older_release(run: Run) -> None:
    for stage in ALL:
        folder, manifest = run.folder(stage), run.manifest(stage)
        assert manifest is not None
        needs = {n: m.fingerprint for n in manifest.description["needs"] if (m := run.manifest(n))}
        description: dict[str, Any] = {**manifest.description, "inputs": {}, "needs": needs}
        (folder / INDEX).remove()
        changed = {"description": description, "fingerprint": _digest(description), "files": record_files(folder)}
        write_record(folder / MANIFEST, manifest.model_copy(update=changed))


def test_a_run_of_an_older_release_is_kept(
    tmp_path: Path, model: Path, read: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = demo_run(tmp_path, *(override.format(model) for override in STAGES.values()))
    _performed(run)
    _made_by_an_older_release(run)
    read.clear()
    capsys.readouterr()
    assert _performed(run) == []
    assert read == []
    assert "nothing changed (it is too old to know the content of base.model): skipped" in capsys.readouterr().out
    again = demo_run(tmp_path, "seed=7", *(override.format(model) for override in STAGES.values()))
    assert "base" in _performed(again)
    (model / WEIGHTS).write_bytes(b"two")
    assert "base" in _performed(again), "what is made again knows it"


def test_a_name_of_the_hub_stands_for_one_model(tmp_path: Path) -> None:
    run = demo_run(tmp_path, *(override.format("owner/name") for override in STAGES.values()))
    assert [_performed(run), _performed(run)] == [ALL, []]
    for stage in STAGES:
        manifest = run.manifest(stage)
        assert manifest is not None
        assert manifest.description["inputs"] == {}
        assert not (run.folder(stage) / INDEX).exists()
