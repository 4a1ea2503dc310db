"""`jobs.answer`: the policy, the requested values, every turn after the policy's own words, and a restart."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from support.manifests import finish, metrics_of, promotion

import jobs.evaluation.answers
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.benchmarks import Question, jsonl, read_answers
from data.conversation import Conversation, Message, to_table
from data.prompts import prompts_from
from data.selection import FINISH
from data.stage_metrics import SamplingMetrics, StageMetrics
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from jobs.answer import Answering, stages
from jobs.evaluation.answers import turn_prompts
from jobs.pipelines.map_rows import write_table
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Performed, Run, Stage, perform

DEMO = str(Path(__file__).resolve().parent.parent / "jobs" / "presets" / "demo.yaml")
LONG = "Tell me about " + "owls and " * 400 + "the moon."
TALK = Question(1, "writing", ("Tell me about the moon.", "And about owls?"))
QUESTIONS = [TALK, Question("b", "math", ("Tell me about tea.",)), Question(3, "math", (LONG,))]


def made(*words: str) -> Answering:
    return load(Answering, DEMO, ["questions=some/where/mt_bench.question.jsonl", *words])


def test_what_is_asked_and_what_it_is_called() -> None:
    assert made().all_requested == {"helpfulness": 4, "creativity": 0, "humor": 0, "toxicity": 0, "verbosity": 1}
    varied = made("requested.humor=4", "requested.creativity=2", "others=unset")
    assert varied.all_requested == {"creativity": 2, "humor": 4}
    assert varied.model_name == "demo-unset-creativity2-humor4"
    assert varied.stage_name == "benchmarks/mt_bench/demo-unset-creativity2-humor4/answers"
    assert made("others=defaults", "model_id=mine").all_requested["verbosity"] == 1
    assert made("model_id=mine").model_name == "mine"
    assert made("sampling.guidance=1.5").model_name == "demo-best-guidance1.5"
    assert made("sampling.guidance=1").model_name == "demo-best"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("requested.humour=4", "unknown attribute 'humour'"),
        ("requested.humor=9", "out of range"),
        ("model_id=a/b", "model_id"),
    ],
)
def test_a_wrong_request_is_a_sentence(word: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        made(word)


def test_the_old_name_of_the_setting_is_an_error_with_the_new_one() -> None:
    with pytest.raises(SettingsError, match="dials on the command line is called requested now"):
        made("dials.humor=4")


def test_another_seed_draws_otherwise() -> None:
    one, same, other = (
        turn_prompts(QUESTIONS, [[] for _ in QUESTIONS], 0, {}, made(word).seed)[0].seed
        for word in ("seed=0", "seed=0", "seed=1")
    )
    assert one == same != other


@pytest.fixture
def questions(tmp_path: Path) -> str:
    file = tmp_path / "asked.question.jsonl"
    file.write_bytes(jsonl({"question_id": q.id, "category": q.category, "turns": q.turns} for q in QUESTIONS))
    return str(file)


def with_policy(storage: Path, policy: str, questions: str, *words: str) -> Run:
    """A run whose first policy is there, without any training."""
    run = Run(
        load(
            Answering,
            DEMO,
            [f"storage={storage}", f"questions={questions}", "sampling.max_tokens=24", "temperature=1", *words],
        )
    )

    def work(run: Run, folder: Storage) -> StageMetrics:
        (folder / "model").upload(policy)
        return StageMetrics()

    perform(run, Stage("policy", (), lambda preset: {}, work))
    return run


def answered(run: Run) -> Performed:
    (stage,) = stages(run.preset)
    return perform(run, stage)


def turns_of(metrics: AnswersMetrics) -> dict[object, tuple[str, ...]]:
    return dict(read_answers(metrics.answers).turns)


@pytest.mark.ray
def test_all_turns_are_answered_the_second_after_the_first(
    ray_cluster: object, tiny_policy: str, tmp_path: Path, questions: str
) -> None:
    run = with_policy(tmp_path / "runs", tiny_policy, questions)
    metrics = metrics_of(answered(run), AnswersMetrics)
    found = turns_of(metrics)
    assert [len(found[q.id]) for q in QUESTIONS] == [2, 1, 1]
    assert all(found[1])
    assert found["b"][0]
    assert found[3] == ("",), "what does not fit is kept, empty, and counted"
    assert metrics.too_long == (3,)
    assert metrics.counts | {"cut_off": 0} == {"questions": 3, "answers": 4, "empty": 1, "cut_off": 0, "too_long": 1}
    assert metrics.model_id == "demo-best"
    line = json.loads(Storage(metrics.answers).read_text().splitlines()[0])
    assert set(line) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    folder = run.folder("benchmarks/asked/demo-best/answers")
    (second,) = prompts_from(next((folder / "turn-2" / "prompts").tables()))
    assert [m.content for m in second.messages] == [QUESTIONS[0].turns[0], found[1][0], QUESTIONS[0].turns[1]]
    assert second.requested == run.preset.schema_.best()
    assert answered(run).skipped


@pytest.mark.ray
@pytest.mark.slow
def test_stopped_before_the_end_it_goes_on(
    ray_cluster: object, tiny_policy: str, tmp_path: Path, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_policy(tmp_path / "runs", tiny_policy, questions)
    sample = jobs.evaluation.answers.sample

    def first_turn_only(run: Run, what: str, *more: object, **named: object) -> SamplingMetrics:
        if what == "answer turn 2":
            raise KeyboardInterrupt
        return sample(run, what, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs.evaluation.answers, "sample", first_turn_only)
    with pytest.raises(KeyboardInterrupt):
        answered(run)
    folder = run.folder("benchmarks/asked/demo-best/answers")
    assert folder.names(".jsonl") == []
    (part,) = (folder / "turn-1" / "answers").files(".parquet")
    written = Path(part).stat().st_mtime_ns
    monkeypatch.undo()
    found = turns_of(metrics_of(answered(run), AnswersMetrics))
    assert Path(part).stat().st_mtime_ns == written, "the first turn was not asked again"
    # Sampled, but by the seed: what was never stopped says the same.
    unbroken = answered(with_policy(tmp_path / "unbroken", tiny_policy, questions))
    assert found == turns_of(metrics_of(unbroken, AnswersMetrics))


def test_the_newest_promoted_policy_answers(tmp_path: Path, questions: str) -> None:
    run = Run(load(Answering, DEMO, [f"storage={tmp_path}", f"questions={questions}", "bootstrap.rounds=3"]))
    assert stages(run.preset)[0].needs == ("policy",), "no round has a promotion decision yet"
    for number, fell in ((1, ()), (2, ("distinct-2 0.3 -> 0.1",))):
        finish(run.root, Rounds().promotion(number), promotion("bootstrap-1/policy", *fell))
    assert stages(run.preset)[0].needs == ("policy", "bootstrap-1/policy", "bootstrap-2/promotion"), (
        "the second round was not promoted"
    )


ALPACA = [{"dataset": "koala", "instruction": f"Tell me about {n}.", "output": "", "generator": "x"} for n in "ab"]
ARENA = [{"uid": "7f", "category": "hard_prompt", "prompt": "Tell me about tea."}]


@pytest.mark.parametrize(
    ("name", "content", "own"),
    [
        ("alpaca_eval.json", json.dumps(ALPACA), "model_outputs.json"),
        ("question.jsonl", json.dumps(ARENA[0]) + "\n", "model_answer/demo-best.jsonl"),
    ],
)
def test_other_benchmarks_get_the_file_that_their_programs_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, own: str
) -> None:
    def echo(run: Run, what: str, policy: Storage, prompts: Storage, target: Storage, *more: object, **named: object):
        asked = [p for table in prompts.tables() for p in prompts_from(table)]
        answered = {p.id: (*p.messages, Message("assistant", f"Yes, {p.messages[-1].content}")) for p in asked}
        rows = [Conversation("benchmark", "", messages, id=id) for id, messages in answered.items()]
        table = to_table(rows, run.schema)
        write_table(table.append_column(FINISH, pa.array(["stop"] * len(rows))), target)

    monkeypatch.setattr(jobs.evaluation.answers, "sample", echo)
    file = tmp_path / name
    file.write_text(content)
    run = Run(load(Answering, DEMO, [f"storage={tmp_path / 'runs'}", f"questions={file}"]))
    finish(run.root, "policy")
    metrics = metrics_of(answered(run), AnswersMetrics)
    assert metrics.benchmark_file.endswith(f"answers/{own}")
    ours, theirs = read_answers(metrics.answers), read_answers(metrics.benchmark_file)
    assert (ours.model, ours.turns) == (theirs.model, theirs.turns), "jobs.judge reads either"
    assert all(text.startswith("Yes, Tell me") for (text,) in theirs.turns.values())
