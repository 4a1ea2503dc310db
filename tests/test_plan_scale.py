"""The calculator: arithmetic that can be checked by hand, what it warns of, and its command line."""

import json

import pytest

from jobs.plan_scale import Annotation, Gpu, Machines, Scale, Training, annotation, main, problems, training


def of(lines: object, what: str) -> float:
    return next(value for name, _, value in lines if name == what)  # type: ignore[attr-defined]


def test_annotation_is_two_operations_a_weight_and_token() -> None:
    scale = Scale(
        gpu=Gpu(bf16_tflops=100, annotate_utilisation=0.5),
        annotate=Annotation(conversations=1e6, tokens_each=500, parameters=1e9, num_gpus=10, filled=1, job_share=1),
    )
    assert of(annotation(scale), "tokens a second and GPU") == pytest.approx(25_000)
    assert of(annotation(scale), "wall clock") == pytest.approx(2000)


def test_training_waits_for_the_network_it_cannot_hide() -> None:
    one_node = Scale(train=Training(num_gpus=8))
    assert of(training(one_node), "one optimizer step") == pytest.approx(8 * 70e9 * 4 * 4096 / (989e12 * 0.35))
    many = Scale(train=Training(num_gpus=64), machines=Machines(overlap=0))
    hidden = Scale(train=Training(num_gpus=64), machines=Machines(overlap=1))
    assert of(training(many), "one optimizer step") > of(training(hidden), "one optimizer step")


def test_the_paper_s_scale_fits_and_what_does_not_is_said() -> None:
    assert problems(Scale()) == []
    assert any("raise train.num_gpus" in p for p in problems(Scale(train=Training(num_gpus=8))))
    assert any(
        "annotate.shard_rows" in p
        for p in problems(Scale(annotate=Annotation(parameters=1e5, shard_rows=256, num_gpus=4096)))
    )


def test_the_last_line_is_json_and_a_wrong_word_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate.num_gpus=512"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["problems"] == []
    assert found["train"]["memory of a worker"] < 80
    assert main(["annotate.gpus=3"]) == 2
    assert "annotate.gpus" in capsys.readouterr().err
