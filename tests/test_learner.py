"""DeepSpeed under Ray Train: the loss of a step is the mean over the global batch, whatever the workers and the ZeRO stage."""

from pathlib import Path

import pytest

from actors.checkpoint import load_format
from actors.examples import ExampleSpec, PolicyExamples
from actors.learner import LearnerSettings, deepspeed_config
from actors.policy import Policy, PolicyTask
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.feed import Feed
from data.lab import Lab, LabSettings
from data.storage import Storage
from jobs.pipelines import write_table
from jobs.stage import StageError
from jobs.training import fit

SCHEMA = shipped("lab")


def _examples(tiny_base: str, folder: Path) -> Storage:
    rows = to_table(list(Lab(LabSettings(num_rows=70, rated_share=1)).rows()), SCHEMA)
    maker = PolicyExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256), "human", Calibration(), attribute_dropout=0.0, seed=0)
    write_table(maker(rows), Storage(str(folder)) / "examples")
    return Storage(str(folder)) / "examples"


@pytest.mark.ray
def test_one_worker_or_two_whole_or_sharded_same_trajectory(ray_cluster: object, tiny_base: str, tmp_path: Path) -> None:
    examples = _examples(tiny_base, tmp_path)
    task = PolicyTask(tiny_base, SCHEMA, "steerlm")
    losses, weights = {}, {}
    for workers, stage in ((1, 0), (2, 3)):
        settings = LearnerSettings(
            num_workers=workers, zero_stage=stage, precision="fp32", row_tokens=256, max_tokens=256, rows_per_step=4, learning_rate=1e-3, warmup=0.0
        )
        output = Storage(str(tmp_path / f"{workers}-{stage}"))
        figures = fit("test", task, settings, examples, output, buckets=8)
        assert (figures["num_workers"], figures["zero_stage"]) == (workers, stage)
        losses[stage] = [p["loss"] for p in figures["losses"]] + [figures["validation_loss"]]
        weights[stage] = Policy.load((output / "model").uri).model.state_dict()
    assert losses[0][0] > losses[0][-2]
    assert losses[3] == pytest.approx(losses[0], abs=2e-4)
    assert max(float((weights[3][k] - weights[0][k]).abs().max()) for k in weights[0]) < 1e-3
    assert load_format(str(tmp_path / "2-3" / "model")).schema == SCHEMA


@pytest.mark.ray
def test_a_worker_that_fails_says_why(ray_cluster: object, tiny_base: str, tmp_path: Path) -> None:
    settings = LearnerSettings(row_tokens=256, max_tokens=256, rows_per_step=1)
    with pytest.raises(StageError, match=r"test failed: .*no examples to train on in .*empty"):
        fit("test", PolicyTask(tiny_base, SCHEMA, "steerlm"), settings, Storage(str(tmp_path / "empty")), Storage(str(tmp_path / "out")))


def test_examples_count_what_they_leave_out(tiny_base: str, tmp_path: Path) -> None:
    rows = list(Lab(LabSettings(num_rows=50, rated_share=0.5)).rows())
    maker = PolicyExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 64), "human", Calibration(), attribute_dropout=0.0, seed=0)
    feed = Feed([maker(to_table(rows, SCHEMA))])
    assert set(feed.rejected) == {"unlabelled", "over_long"}
    assert len(feed) + sum(feed.rejected.values()) == 50


def test_attribute_dropout_hides_labels_the_same_way_in_every_run(tiny_base: str) -> None:
    rows = to_table(list(Lab(LabSettings(num_rows=40, rated_share=1)).rows()), SCHEMA)
    spec = ExampleSpec(tiny_base, SCHEMA, "steerlm", 512)
    shown, half, again = (Feed([PolicyExamples(spec, "human", Calibration(), d, seed=0)(rows)]) for d in (0.0, 0.5, 0.5))
    assert sum(half.lengths) < sum(shown.lengths)
    assert half.lengths.tolist() == again.lengths.tolist()


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="rows_per_step 3 must be a multiple of num_workers 2"):
        LearnerSettings(num_workers=2, rows_per_step=3)
    with pytest.raises(ValueError, match="max_tokens 4096 must not exceed row_tokens 1024"):
        LearnerSettings(max_tokens=4096)
    assert deepspeed_config(LearnerSettings(zero_stage=3, rows_per_step=8, num_workers=2), 2)["gradient_accumulation_steps"] == 4
