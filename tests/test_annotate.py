"""Stage `annotated` by itself: its manifest, and that a killed one continues only where nothing has changed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.annotated_run import ready
from support.judge_server import Answer, Asked, JudgeServer, serving
from support.manifests import metrics_of
from support.stages import demo_run, stage_of

from data.conversation import from_table
from data.stage_metrics import AnnotationMetrics, AuditMetrics, PassMetrics
from data.storage import Storage
from jobs.annotate import STAGE
from jobs.pipelines.annotation import calibration, endpoint_rater, read_text_rater, summary
from jobs.pipelines.map_rows import Pass
from jobs.runner.stage import Run, StageError, perform

SIZES = ("rows.lab.num_rows=60", "rows.rows_per_file=25", "annotate.pool.batch_rows=10")


def _then_killed(run: Run, folder: Storage) -> AnnotationMetrics:
    STAGE.work(run, folder)
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_annotation_is_gone_on_with_unless_something_changed(
    ray_cluster: object, tiny_predictor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = str(shutil.copytree(tiny_predictor, tmp_path / "predictor"))
    run = ready(str(tmp_path), predictor, *SIZES)
    with pytest.raises(KeyboardInterrupt):
        perform(run, replace(STAGE, work=_then_killed))
    assert "annotate: 2 actors x 1 CPU" in capsys.readouterr().out
    metrics = metrics_of(perform(run, STAGE), AnnotationMetrics)
    assert (metrics.rows, metrics.rows_before) == (60, 60)
    assert metrics.audit == AuditMetrics(files=3, rows=60, digest=metrics.audit.digest)
    rows = [row for table in (run.folder("annotated") / "rows").tables() for row in from_table(table)]
    assert metrics.counts["answers"] == metrics.counts["rated_answers"] == sum(len(row.predicted) for row in rows)
    assert metrics.counts["tokens"] == sum(row.tokens for row in rows)
    assert 0.5 < metrics.pack_fill <= 1
    means = {
        name: sum(v[name] for row in rows for v in row.predicted) / metrics.counts["answers"]
        for name in run.schema.names
    }
    assert metrics.predicted_mean == pytest.approx(means, abs=1e-3)
    assert perform(run, STAGE).skipped
    # The same settings, but other weights under the same manifest: nothing old may stay.
    (run.folder("annotated") / "manifest.json").remove()
    with pytest.raises(KeyboardInterrupt):
        perform(run, replace(STAGE, work=_then_killed))
    model = run.folder("predictor") / "model"
    (model / "other.txt").write_bytes(b"changed")
    assert metrics_of(perform(run, STAGE), AnnotationMetrics).rows_before == 0


RATERS = """annotate.raters=[
  {kind: text, attributes: {verbosity: words}},
  {kind: judge, attributes: {humor: Jokes., helpfulness: ''}, judge: {model: strict, base_url: URL, key_variable: null,
    concurrency: 4, max_retries: 0, give_up_after: 3}},
  {kind: predictor, attributes: [humor]}]"""


def _until(num: int, judge: JudgeServer) -> Callable[[Asked], Answer]:
    """A judge that goes down after `num` requests."""
    return lambda asked: Answer('{"humor": 4, "helpfulness": 2}') if len(judge.asked) <= num else Answer("down", 503)


@pytest.mark.slow
@pytest.mark.ray
def test_others_rate_beside_the_predictor_and_a_judge_that_was_down_is_asked_for_the_rest(
    ray_cluster: object, tiny_predictor: str, tmp_path: Path
) -> None:
    with serving() as judge:
        judge.behave = _until(40, judge)
        run = ready(str(tmp_path), tiny_predictor, *SIZES, RATERS.replace("URL", judge.url))
        with pytest.raises(StageError, match=r"judge: strict failed to rate .*unusable: .*max_failed"):
            perform(run, STAGE)
        judge.behave = _until(10**6, judge)
        metrics = metrics_of(perform(run, STAGE), AnnotationMetrics)
        answered = len({a.prompt for a in judge.asked})
        assert len(judge.asked) - answered <= 3 + 4, "only what failed or was on its way was asked again"
    assert metrics.audit.rows == 60
    assert metrics.rows_before < 60, "parts with failures are made again"
    rows = [row for table in (run.folder("annotated") / "rows").tables() for row in from_table(table)]
    texts = read_text_rater(run)
    for row in rows:
        answers = [m.content for m in row.messages if m.role == "assistant"]
        for values, text in zip(row.predicted, answers, strict=True):
            assert values["helpfulness"] == 2
            assert values["verbosity"] == pytest.approx(texts(text)["verbosity"], abs=1e-5)
    answers = metrics.counts["answers"]
    assert metrics.agreement["judge: strict"]["humor"].given == answers
    assert {of.num_failed for found in metrics.agreement.values() for of in found.values()} == {0}
    assert metrics.agreement["merged"]["humor"].rated_by_people > 0
    assert metrics.raters["humor"] == "mean of judge: strict and predictor"
    mean = sum(v["humor"] for row in rows for v in row.predicted) / answers
    assert metrics.predicted_mean["humor"] == pytest.approx(mean, abs=1e-3)
    file = (run.folder("annotated") / "rows").files(".parquet")[0]
    by = [v for row in pq.read_table(file).column("rated_by").to_pylist() for v in row]
    assert {v["humor"] for v in by} == {"judge: strict + predictor"}
    assert calibration(run).scale["humor"] > 0
    assert calibration(run).of("helpfulness", 2.0) == pytest.approx(
        2 + metrics.agreement["judge: strict"]["helpfulness"].shift
    )
    assert set(endpoint_rater(run).elsewhere) == {"humor", "helpfulness"}
    assert perform(run, STAGE).skipped


@pytest.mark.slow
@pytest.mark.ray
def test_a_broken_predictor_is_one_sentence(ray_cluster: object, tiny_predictor: str, tmp_path: Path) -> None:
    predictor = shutil.copytree(tiny_predictor, tmp_path / "predictor")
    weights = predictor / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    run = ready(str(tmp_path), str(predictor), *SIZES)
    with pytest.raises(StageError, match=r"^annotate: no readable backbone at .*/predictor/model: .*"):
        perform(run, STAGE)


def test_a_summary_of_nothing_rated_divides_by_nothing() -> None:
    counters = dict.fromkeys(
        ["answers", "rated_answers", "answers_cut_off", "truncated", "over_long_unrated", "tokens", "sum/x"], 0.0
    )
    done = PassMetrics(rows=3, rows_before=0, seconds=0.1, rows_per_s=30.0)
    audited = AuditMetrics(files=1, rows=3, digest="d")
    metrics = summary(Pass(done, counters | {"filled_tokens": 0, "budget_tokens": 0}), ("x",), audited)
    assert metrics.predicted_mean == {"x": 0.0}
    assert metrics.pack_fill == 0


@pytest.mark.parametrize("is_uri", [False, True])
def test_another_content_of_a_rater_s_folder_rates_the_rows_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_uri: bool
) -> None:
    model = tmp_path / "rater"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"one")
    uri = f"file://{model}" if is_uri else str(model)
    run = demo_run(tmp_path, f"annotate.raters=[{{kind: hf, model: '{uri}', attributes: {{humor: 0}}}}]")
    for name in STAGE.needs:
        perform(run, stage_of(name, []))
    # The real stage, but for the work of its actors.
    stage = replace(STAGE, work=stage_of("annotated", []).work, contents=lambda run: {})
    assert [perform(run, stage).skipped for _ in range(2)] == [False, True]
    (model / "README.md").write_text("a file that no model is loaded from")
    os.utime(model / "model.safetensors", (1, 1))
    assert perform(run, stage).skipped
    (model / "model.safetensors").write_bytes(b"two")  # as long as before
    assert [perform(run, stage).skipped for _ in range(2)] == [False, True]
    assert f"changed: inputs.hf: {uri}" in capsys.readouterr().out
