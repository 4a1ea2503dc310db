"""The calculator: arithmetic that can be checked by hand, what it warns of, and its command line."""

import json

import pytest

from jobs.plan_scale import main
from jobs.planning.passes import ANNOTATE, outlook, outlooks, passes
from jobs.planning.settings import (
    AnnotationScale,
    Gpu,
    Machines,
    PassRates,
    PreparationScale,
    ScalePlan,
    TrainingScale,
)
from jobs.planning.steps import annotation, problems, training


def of(lines: object, what: str) -> float:
    return next(value for name, _, value in lines if name == what)  # type: ignore[attr-defined]


def test_annotation_is_two_operations_a_weight_and_token() -> None:
    scale = ScalePlan(
        gpu=Gpu(bf16_tflops=100, annotate_utilization=0.5),
        annotate=AnnotationScale(
            conversations=1e6, tokens_each=500, parameters=1e9, num_gpus=10, filled=1, job_share=1
        ),
    )
    assert of(annotation(scale), "tokens a second and GPU") == pytest.approx(25_000)
    assert of(annotation(scale), "wall clock") == pytest.approx(2000)


def test_training_waits_for_the_network_it_cannot_hide() -> None:
    one_node = ScalePlan(train=TrainingScale(num_gpus=8))
    assert of(training(one_node), "one optimizer step") == pytest.approx(8 * 70e9 * 4 * 4096 / (989e12 * 0.35))
    many = ScalePlan(train=TrainingScale(num_gpus=64), machines=Machines(overlap=0))
    hidden = ScalePlan(train=TrainingScale(num_gpus=64), machines=Machines(overlap=1))
    assert of(training(many), "one optimizer step") > of(training(hidden), "one optimizer step")


def test_the_paper_s_scale_fits_and_what_does_not_is_a_problem() -> None:
    assert problems(ScalePlan()) == []
    assert any("raise train.num_gpus" in p for p in problems(ScalePlan(train=TrainingScale(num_gpus=8))))
    assert any(
        "annotate.shard_rows" in p
        for p in problems(ScalePlan(annotate=AnnotationScale(parameters=1e5, shard_rows=256, num_gpus=4096)))
    )


def test_the_last_line_is_json_and_a_wrong_word_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate.num_gpus=512"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["problems"] == []
    assert found["train"]["memory of a worker"] < 80
    assert [(p["rows"], p["cards"]) for p in found["passes"]][-1] == (10**9, 512), "the settings' own after the table's"
    assert main(["annotate.gpus=3"]) == 2
    assert "annotate.gpus" in capsys.readouterr().err
    assert main(["train.rows_each=2"]) == 2
    assert "train.packs_each" in capsys.readouterr().err


def test_every_pass_is_counted_by_its_own_rate() -> None:
    scale = ScalePlan(
        annotate=AnnotationScale(
            conversations=1e6, num_gpus=10, shard_rows=1000, rows_per_file=10_000, tokens_each=100
        ),
        machines=Machines(cpus_beside=4),
        prepare=PreparationScale(
            rows_per_file=100, files_listed_per_s=1000, rows_per_s_per_cpu=500, ids_per_s_per_cpu=5000
        ),
        passes=PassRates(
            pieces_per_s=50,
            merged_rows_per_s_per_cpu=1000,
            audited_rows_per_s_per_cpu=2500,
            footers_per_s=10,
            example_rows_per_s=10_000,
            report_s=7,
        ),
    )
    found = dict(passes(scale))
    assert found.pop(ANNOTATE) == of(annotation(scale), "wall clock")
    assert found == {
        "list sources": 10,
        "prepare": 50,
        "duplicates": 5,
        "annotate, tokenizing": pytest.approx(1e8 / (150_000 * 40)),
        "annotate, driver": 20,
        "annotate, merges": 25,
        "index": 10,
        "audit": 10,
        "training data, tokenizing": pytest.approx(1e8 / (150_000 * 40)),
        "training data, reading": 100,
        "report": 7,
    }


def test_the_table_says_what_bounds_the_whole() -> None:
    wide, narrow = (outlook(ScalePlan(), 10**9, cards) for cards in (1000, 100))
    assert wide.seconds["prepare"] == narrow.seconds["prepare"] / 10
    assert wide.seconds["annotate, driver"] == narrow.seconds["annotate, driver"], "one driver, whatever the cards"
    assert narrow.bound == ANNOTATE
    assert ANNOTATE not in narrow.above
    slow = ScalePlan(passes=PassRates(pieces_per_s=0.5))
    assert outlook(slow, 10**9, 100).bound == "annotate, driver"
    assert "annotate, driver" in outlook(slow, 10**9, 100).above
    assert len(outlooks(ScalePlan(annotate=AnnotationScale(num_gpus=100)))) == 6, "one of the table's own"
