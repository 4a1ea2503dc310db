"""Manifests: written last, skipped while they hold, and what a change reruns. No Ray: a stage is any function."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import manifest
from support.stages import DEMO, demo_run, stage_of

from cluster.settings.load import load
from data.run_layout import MANIFEST, write_record
from data.stage_metrics import StageMetrics
from data.storage import Storage
from jobs.run import stages
from jobs.runner.preset import Preset
from jobs.runner.stage import Performed, Run, Stage, StageError, _description, _digest, fingerprint_of, perform, require
from jobs.runner.stage_folder import begun_with


def test_finished_stages_are_skipped_and_changed_ones_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    first, second = stage_of("a", calls), stage_of("b", calls, ("a",))
    for _ in range(2):
        for stage in (first, second):
            perform(demo_run(tmp_path), stage)
    assert calls == ["a", "b"]
    assert "finished earlier" in capsys.readouterr().out
    perform(demo_run(tmp_path, "seed=7"), first)
    perform(demo_run(tmp_path, "seed=7"), second)
    assert calls == ["a", "b", "a", "b"]
    out = capsys.readouterr().out
    assert "changed: settings.seed 0 -> 7" in out
    assert "needs.a" in out


@pytest.mark.case("B13: manifests")
def test_a_manifest_has_no_credential_and_a_new_one_is_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def performed(uri: str) -> Performed:
        file = f"{uri}/rows.jsonl"
        stage = replace(
            stage_of("a", calls), settings=lambda preset: {"uri": uri}, inputs=lambda run: {file: "checksum"}
        )
        return perform(demo_run(tmp_path), stage)

    calls: list[str] = []
    plain = performed("https://host/x?download=true")
    content = {"uri": "https://host/x?download=true"}, {"https://host/x?download=true/rows.jsonl": "checksum"}
    assert (plain.manifest.description["settings"], plain.manifest.description["inputs"]) == content
    assert plain.manifest.fingerprint == _digest(plain.manifest.description), "as ever, without a credential"
    for uri in ("https://bob:hunter22@host/x", "https://bob:hunter33@host/x"):
        assert [performed(uri).skipped for _ in range(2)] == [False, True]
        assert "hunter" not in (tmp_path / "demo" / "a" / MANIFEST).read_text()
    out = capsys.readouterr().out
    assert "changed: a credential in a URI" in out
    assert "hunter" not in out


def test_a_stage_at_work_and_a_killed_one_know_what_they_began_to_read(tmp_path: Path) -> None:
    found: list[dict[str, str]] = []
    run, folder = demo_run(tmp_path), demo_run(tmp_path).folder("a")

    def work(run: Run, folder: Storage) -> StageMetrics:
        found.append(begun_with(folder))
        raise KeyboardInterrupt

    assert begun_with(folder) == {}
    stage = replace(stage_of("a", []), work=work, inputs=lambda run: {"lake.a.rows": "snapshot 1"})
    with pytest.raises(KeyboardInterrupt):
        perform(run, stage)
    assert [*found, begun_with(folder)] == [{"lake.a.rows": "snapshot 1"}] * 2


def test_no_manifest_no_stage(tmp_path: Path) -> None:
    calls = ["boom"]
    stage = stage_of("a", calls)
    with pytest.raises(RuntimeError, match="killed"):
        perform(demo_run(tmp_path), stage)
    run = demo_run(tmp_path)
    assert run.manifest("a") is None
    assert (run.folder("a") / "out.json").exists()  # left by the killed one ...
    (run.folder("a") / "stray").write_bytes(b"x")
    calls.clear()
    perform(run, stage)
    assert not (run.folder("a") / "stray").exists()  # ... is cleared by the next
    with pytest.raises(StageError, match="stage b needs c, which is not finished"):
        require(run, stage_of("b", [], ("a", "c")))


def _killed_in(run: Run, stage: Stage) -> str:
    """Perform a stage that dies before its manifest; returns its fingerprint."""
    with pytest.raises(RuntimeError, match="killed"):
        perform(run, stage)
    return fingerprint_of(run.folder(stage.name))


def test_a_resuming_stage_keeps_what_was_made_from_the_same_things_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents, run = {"weights": "1"}, demo_run(tmp_path)
    perform(run, stage_of("a", []))
    stage = replace(stage_of("b", ["boom"], ("a",)), resumes=True, contents=lambda run: dict(contents))
    fingerprint = _killed_in(run, stage)
    stray = run.folder("b") / "stray"
    stray.write_bytes(b"x")
    assert _killed_in(run, stage) == fingerprint
    assert stray.exists()
    assert "[b] goes on with what an earlier run left" in capsys.readouterr().out
    fingerprints = {fingerprint}

    def again(run: Run, why: str) -> None:
        stray.write_bytes(b"x")
        fingerprints.add(_killed_in(run, stage))
        assert not stray.exists(), why

    contents["weights"] = "2"
    again(run, "the contents of an input changed")
    again(demo_run(tmp_path, "seed=7"), "a setting changed")
    old = run.manifest("a")
    assert old
    write_record(run.folder("a") / MANIFEST, old.model_copy(update={"finished": "2000-01-01T00:00:00Z"}))
    again(demo_run(tmp_path, "seed=7"), "an input was made again, from the same settings")
    assert len(fingerprints) == 4


CHANGES = {
    "rows.lab.num_rows=10": "rows",
    "base.small.hidden_size=64": "base",
    "predictor.learner.epochs=9": "predictor",
    "annotate.max_tokens=100": "predictor",
    "policy.learner.epochs=9": "policy",
    "policy.calibrate=false": "policy",
    "policy.attribute_dropout=0.5": "policy",
    "bootstrap.num_prompts=9": "bootstrap-1/samples",
    "bootstrap.selection.max_words=9": "bootstrap-1/selected",
    "bootstrap.learner.epochs=9": "bootstrap-1/policy",
    "bootstrap.num_questions=9": "bootstrap-1/promotion",
    "sampling.top_k=9": "bootstrap-1/samples",
    "evaluate.num_questions=9": "report",
    "storage=elsewhere": None,
    "ray.num_cpus=9": None,
    "annotate.pool.num_actors=9": None,
    "sampling.pool.batch_rows=9": None,
    "base.num_parameters=9": None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_reruns_exactly_what_depends_on_it(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "manifest", lambda self, name: manifest(name, fingerprint=name))
    before, after = demo_run(tmp_path), demo_run(tmp_path, change)
    changed = [s.name for s in stages(before.preset) if _description(before, s) != _description(after, s)]
    assert changed[:1] == ([CHANGES[change]] if CHANGES[change] else [])


def test_every_stage_that_must_follow_is_reached_through_needs() -> None:
    by_name = {s.name: s for s in stages(load(Preset, DEMO))}
    rounds = [f"bootstrap-1/{kind}" for kind in ("samples", "rated", "selected", "policy", "promotion")]
    assert list(by_name) == ["rows", "base", "predictor", "annotated", "policy", *rounds, "report"]

    def upstream(name: str) -> set[str]:
        return {name}.union(*(upstream(n) for n in by_name[name].needs))

    assert upstream("report") == set(by_name)
