"""The calculator: arithmetic that can be checked by hand, what it warns of, and its command line."""

import json

import pytest

from jobs.plan_scale import (
    AnnotationScale,
    Gpu,
    Machines,
    ScalePlan,
    TrainingScale,
    annotation,
    main,
    problems,
    training,
)


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
    assert main(["annotate.gpus=3"]) == 2
    assert "annotate.gpus" in capsys.readouterr().err
    assert main(["train.rows_each=2"]) == 2
    assert "train.packs_each" in capsys.readouterr().err
