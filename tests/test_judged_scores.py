"""A judge's results in the table of `jobs.benchmark`: of the very answers that were judged, and nobody is asked."""

import json
import re
from pathlib import Path

import pytest
from support.benchmark_run import SETTINGS, made
from support.judge_run import of, run_command
from support.judge_server import KEY, Answer, Asked, serving
from support.manifests import finish, metrics_of

from data.benchmark_metrics import BenchmarkTable, TaskScore
from data.errors import UserError
from data.judge_report import JudgeReport, read_judge_report
from data.measures import share_interval
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from jobs.benchmark import stages
from jobs.benchmarking.judged_answers import answer_stages
from jobs.runner.stage import Run, perform

# openai's client leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

QUESTIONS = [f"Question {n}?" for n in range(4)]
WORDS = ("poor", "fair", "great")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def by_words(asked: Asked) -> Answer:
    """A judge that goes by the word of praise in the answers."""
    found = [WORDS.index(word) for word in re.findall("poor|fair|great", asked.prompt)]
    if len(found) == 1:
        return Answer(f"[[{3 * found[0] + 2}]]")
    first, second = found
    return Answer("[[C]]" if first == second else "[[A]]" if first > second else "[[B]]")


def answered(run: Run, *words: str) -> None:
    """The stages of answers, finished: `plain` is poor, `funny` as the words say."""
    for stage in answer_stages(run.preset):  # type: ignore[arg-type]
        model = stage.name.split("/")[-2]
        folder = run.folder(stage.name)
        texts = words if model == "demo-funny" else ("poor",) * len(QUESTIONS)
        write_answers(Path(folder.path) / f"{model}.jsonl", model, texts)
        about = AnswersMetrics(
            answers=f"/moved/since/{model}.jsonl", policy="", model_id=model, requested={}, counts={}, too_long=()
        )
        finish(run.root, stage.name, about)


def write_answers(file: Path, model: str, texts: tuple[str, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"question_id": n, "model_id": model, "choices": [{"index": 0, "turns": [text]}]}
        for n, text in enumerate(texts)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("vicuna", "other"):
        lines = [{"question_id": n, "turns": [f"{name}: {text}"]} for n, text in enumerate(QUESTIONS)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = f"benchmark.answers.files=[{tmp_path}/vicuna.jsonl, {tmp_path}/other.jsonl]"
    found = Run(made(f"storage={tmp_path}/runs", files, SETTINGS, f"benchmark.answers.judged=[{tmp_path}/judged]"))
    answered(found, "great", "great", "fair", "great")
    write_answers(tmp_path / "rival.jsonl", "rival", ("great", "fair", "fair", "fair"))
    return found


def judge(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    folder = run.folder("benchmarks/vicuna").path
    ours = [f"{folder}/{model}/answers/{model}.jsonl" for model in ("demo-plain", "demo-funny")]
    files = [f"questions={tmp_path}/vicuna.jsonl", f"answers=[{', '.join([*ours, f'{tmp_path}/rival.jsonl'])}]"]
    with serving(by_words) as server:
        done = run_command(
            capsys, *files, f"output={tmp_path}/judged", "judge.model=strict", "resamples=50", of(server), *words
        )
    assert done[0] == 0, done[3]


def table(run: Run) -> BenchmarkTable:
    return metrics_of(perform(run, stages(run.preset)[-1]), BenchmarkTable)


def test_a_judge_s_win_rates_and_ratings_join_the_table(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(run).scores == (), "nobody has judged yet"
    assert f"no judge has finished in {tmp_path}/judged" in capsys.readouterr().out
    judge(run, tmp_path, capsys)
    found = table(run)
    assert [(row.task, row.metric, row.samples) for row in found.scores] == [
        ("vicuna", "win rate against rival, judged by strict", 4),
        ("vicuna", "rating of 10 by strict", 4),
    ], "answers to the questions of `other` were not judged"
    wins, ratings = (row.at for row in found.scores)
    # funny: tie, win, tie, win; plain loses all.
    assert {name: score.value for name, score in wins.items()} == {"plain": 0, "funny": 0.75}
    assert wins["funny"].bounds == pytest.approx(share_interval(0.75, 4), abs=1e-4)
    assert {name: score.value for name, score in ratings.items()} == {"plain": 2, "funny": 7.25}
    assert found.settings.keys() == {"plain", "funny"}
    page = (run.folder("benchmarks/table") / "report.html").read_text()
    assert "win rate against rival, judged by strict" in page
    assert perform(run, stages(run.preset)[-1]).skipped


def test_other_answers_than_the_judged_ones_have_no_scores(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(run, tmp_path, capsys, "limit=3")
    assert {score.value for row in table(run).scores for score in row.at.values()} == {0, 0.6667, 2, 7.0}
    answered(run, "poor", "great", "fair", "great")
    (run.folder("benchmarks/table") / "manifest.json").remove()
    assert [set(row.at) for row in table(run).scores] == [{"plain"}, {"plain"}]
    assert "the answers of demo-funny are not those that were judged" in capsys.readouterr().err
    answered(run, "great", "great", "fair", "poor")  # the last question was not judged
    (run.folder("benchmarks/table") / "manifest.json").remove()
    assert [set(row.at) for row in table(run).scores] == [{"plain", "funny"}] * 2


def test_a_report_that_names_none_of_the_answers_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(run, tmp_path, capsys)
    stored = [f"judgements=[{tmp_path}/judged/judgements.jsonl]", f"output={tmp_path}/judged", "resamples=50"]
    assert run_command(capsys, *stored)[0] == 0
    assert table(run).scores == ()
    assert "has no scores of answers of demo-plain, demo-funny" in capsys.readouterr().err
    (tmp_path / "judged" / "report.json").write_text('{"steering": {}}')
    with pytest.raises(UserError, match=r"report\.json is no report of jobs\.judge \(judge: Field required\)"):
        table(run)


def test_a_pair_is_seen_from_either_side(tmp_path: Path) -> None:
    pair = {"model": "a", "against": "b", "win_rate": 0.2, "interval": [0.1, 0.4], "win": 1}
    report = {"judge": "strict", "reference_model": "b", "pairs": [pair], "single": {}, "finished": "now"}
    Storage(str(tmp_path / "report.json")).write_json(report)
    found = read_judge_report(Storage(str(tmp_path)))
    assert isinstance(found, JudgeReport)
    assert (found.opponents("a"), found.opponents("b")) == (["b"], ["a"])
    assert found.win_rate("a", "b") == TaskScore(value=0.2, interval=(0.1, 0.4))
    assert found.win_rate("b", "a") == TaskScore(value=0.8, interval=(0.6, 0.9))
    assert (found.win_rate("a", "c"), found.rating("a")) == (None, None)
