"""The settings of `jobs.benchmark`, and which stages they make."""

import pytest
from support.benchmark_run import SETTINGS, made

from cluster.settings.errors import SettingsError
from jobs.benchmark import stages

TASK = "benchmark.lm_eval.tasks=[{name: ifeval}, {name: truthfulqa_mc2, by: likelihoods}]"
FILE = "benchmark.rewardbench.uri=some/where.parquet"


def test_a_setting_has_every_attribute() -> None:
    preset = made(TASK, SETTINGS)
    assert preset.benchmark.named_settings == {"plain": {"humor": 0}, "funny": {"humor": 4}}
    assert preset.requested("funny") == {"helpfulness": 4, "creativity": 0, "humor": 4, "toxicity": 0, "verbosity": 1}
    best = made(TASK, "benchmark.others=best", "benchmark.settings.short.verbosity=0")
    assert best.requested("short") == best.schema_.best() | {"verbosity": 0}
    assert made(TASK).requested("defaults") == made(TASK).schema_.defaults(), "one setting, without any"


def test_a_stage_for_each_pair_of_setting_and_task_and_the_table_last() -> None:
    made_stages = stages(made(TASK, FILE, SETTINGS))
    assert [stage.name for stage in made_stages] == [
        "benchmarks/lm_eval/plain/ifeval/scores",
        "benchmarks/lm_eval/plain/truthfulqa_mc2/scores",
        "benchmarks/lm_eval/funny/ifeval/scores",
        "benchmarks/lm_eval/funny/truthfulqa_mc2/scores",
        "benchmarks/rewardbench",
        "benchmarks/table",
    ]
    assert made_stages[-1].needs == tuple(stage.name for stage in made_stages[:-1])
    assert made_stages[0].needs == ("policy",)
    assert [stage.name for stage in stages(made(FILE))] == ["benchmarks/rewardbench", "benchmarks/table"]


def test_questions_are_answered_at_every_setting() -> None:
    preset = made("benchmark.answers.files=[data/alpaca_eval.json]", "benchmark.answers.limit=3", SETTINGS)
    plain, funny, table = stages(preset)
    assert (plain.name, funny.name) == (
        "benchmarks/alpaca_eval/demo-plain/answers",
        "benchmarks/alpaca_eval/demo-funny/answers",
    )
    assert funny.resumes
    settings = funny.settings(preset)
    assert isinstance(settings, dict)
    assert (settings["model"], settings["requested"]["humor"], settings["limit"]) == ("demo-funny", 4, 3)
    assert table.needs == (plain.name, funny.name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "benchmark names nothing to run; set benchmark.lm_eval.tasks"),
        ([FILE, "benchmark.settings={a: {humour: 1}}"], "benchmark.settings.a: unknown attribute 'humour'"),
        ([FILE, "benchmark.settings={a: {humor: 9}}"], "benchmark.settings.a: attribute 'humor' got 9.0, out of range"),
        ([FILE, "benchmark.settings={a/b: {}}"], "not the name of one folder"),
        ([FILE, "benchmark.rewardbench.weights={humor: 0}"], "benchmark.rewardbench.weights leaves every attribute"),
        (["benchmark.answers.files=[a/question.jsonl, b/question.jsonl]"], "give the files different names"),
        ([FILE, "benchmark.answers.judged=[runs/judged]"], "benchmark.answers.files has none of the questions"),
        (["benchmark.lm_eval.tasks=[{name: a}, {name: a}]"], "has the names a, a; name each task once"),
        ([TASK, "benchmark.lm_eval.gen_kwargs={attributes: {}}"], "these are those of benchmark.settings"),
        ([TASK, "benchmark.endpoint.base_url=http://me:secret@host/v1"], "give the key by benchmark.endpoint"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        made(*words)
