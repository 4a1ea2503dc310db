"""DeepSpeed under Ray Train: a step's loss is the mean over the global batch, for any workers and ZeRO stage."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.modeling.model_folder import load_format
from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.scoring.predictor import Predictor
from actors.training.examples import ExampleSpec, PolicyExamples, PredictorExamples
from actors.training.settings import LearnerSettings, deepspeed_config
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Examples, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import Preset
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
DEMO = str(Path(__file__).resolve().parent.parent / "jobs" / "presets" / "demo.yaml")


def _rated(tiny_base: str, folder: Path, num_rows: int, noise: bool) -> Storage:
    """Predictor examples; `noise`: ratings do not depend on the text, so that they can only be memorized."""
    rng = np.random.default_rng(0)
    rows = [
        row for row in Lab(LabSettings(num_rows=num_rows, rated_share=1)).rows() if row.num_answers == 1 or not noise
    ]
    if noise:
        rows = [row.with_human([{name: float(rng.integers(0, 5)) for name in SCHEMA.names}]) for row in rows]
    write_table(
        PredictorExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256))(to_table(rows, SCHEMA)),
        Storage(str(folder)) / "examples",
    )
    return Storage(str(folder)) / "examples"


@pytest.mark.slow
@pytest.mark.ray
def test_one_worker_or_two_whole_or_sharded_same_trajectory(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    """Packs of a step have unequal attribute weights and missing labels: the mean must be over the global batch."""
    examples = _rated(tiny_base, tmp_path, 70, noise=False)
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", {"humor": 4.0, "verbosity": 0.25})
    losses, weights = {}, {}
    for workers, stage in ((1, 0), (2, 3)):
        settings = LearnerSettings(
            num_workers=workers,
            zero_stage=stage,
            precision="fp32",
            pack_tokens=256,
            max_tokens=256,
            packs_per_step=4,
            learning_rate=1e-3,
            warmup=0.0,
            epochs=2,
        )
        output = Storage(str(tmp_path / f"{workers}-{stage}"))
        metrics = fit("test", task, settings, Corpus.of(examples), output, Split(8))
        assert (metrics.num_workers, metrics.zero_stage, metrics.saved_step) == (workers, stage, metrics.steps)
        losses[stage] = [p.loss for p in metrics.losses] + [metrics.validation_loss]
        weights[stage] = Predictor.load((output / "model").uri).module.model.state_dict()
    half = len(losses[0]) // 2
    assert np.mean(losses[0][:half]) > np.mean(losses[0][half:]), losses[0]
    assert losses[3] == pytest.approx(losses[0], abs=2e-4)
    assert max(float((weights[3][k] - weights[0][k]).abs().max()) for k in weights[0]) < 1e-3
    assert load_format(str(tmp_path / "2-3" / "model")).schema == SCHEMA


@pytest.mark.slow
@pytest.mark.ray
def test_training_stops_early_and_saves_the_best_step_not_the_last(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    examples = _rated(tiny_base, tmp_path, 60, noise=True)
    task, output = PredictorTask(tiny_base, SCHEMA, "steerlm"), Storage(str(tmp_path)) / "out"
    settings = LearnerSettings(
        num_workers=2, zero_stage=3, precision="fp32", pack_tokens=512, max_tokens=256, packs_per_step=2, epochs=60,
        learning_rate=1e-2, warmup=0.0, schedule="constant_with_warmup", validate_every=1.0, patience=3,
    )  # fmt: skip
    metrics = fit("test", task, settings, Corpus.of(examples), output, split := Split(5, 1, 3))
    curve = metrics.validations
    assert metrics.saved_step < metrics.steps
    assert metrics.epochs < 60
    assert [v.step for v in curve][-4:][0] == metrics.saved_step, (
        "patience 3: the third validation after the best is the last"
    )
    assert metrics.validation_loss == pytest.approx(min(v.loss for v in curve), abs=1e-6)

    exported = PredictorTask(os.path.join(output.path, "model"), SCHEMA, "steerlm")
    module, all_of_them = exported.build().eval(), Examples(examples.tables())
    held_out = [all_of_them[i] for i, group in enumerate(all_of_them.groups) if split.validates(group)]
    with torch.no_grad():
        loss = sum(module(**exported.inputs([e], "cpu")).item() for e in held_out) / sum(
            exported.target_weight(e) for e in held_out
        )
    assert loss == pytest.approx(metrics.validation_loss, rel=1e-5)


@pytest.mark.ray
def test_a_worker_that_fails_says_why(ray_cluster: object, tiny_base: str, tmp_path: Path) -> None:
    settings = LearnerSettings(pack_tokens=256, max_tokens=256, packs_per_step=1)
    with pytest.raises(StageError, match=r"test failed: .*no examples to train on in .*empty"):
        fit(
            "test",
            PolicyTask(tiny_base, SCHEMA, "steerlm"),
            settings,
            Corpus.of(Storage(str(tmp_path / "empty"))),
            Storage(str(tmp_path / "out")),
        )


@pytest.mark.slow
@pytest.mark.ray
def test_a_small_set_of_which_chance_held_out_nothing_is_trained_on(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    examples, task = _rated(tiny_base, tmp_path, 20, noise=False), PredictorTask(tiny_base, SCHEMA, "steerlm")
    settings = LearnerSettings(precision="fp32", pack_tokens=512, max_tokens=256, packs_per_step=2)
    metrics = fit(
        "test", task, settings, Corpus.of(examples), Storage(str(tmp_path)) / "out", nothing := Split(10**6, 1)
    )
    assert (metrics.epochs, metrics.validation_loss, metrics.validations) == (1, None, ())
    with pytest.raises(
        StageError, match="validate_every is 1, but no example is held out to validate on; raise validation_share"
    ):
        fit(
            "test",
            task,
            settings.model_copy(update={"validate_every": 1.0}),
            Corpus.of(examples),
            Storage(str(tmp_path)) / "picky",
            nothing,
        )


def test_examples_count_what_they_leave_out(tiny_base: str, tmp_path: Path) -> None:
    rows = list(Lab(LabSettings(num_rows=50, rated_share=0.5)).rows())
    maker = PolicyExamples(
        ExampleSpec(tiny_base, SCHEMA, "steerlm", 64), "human", Calibration(), attribute_dropout=0.0, seed=0
    )
    loader = Examples([maker(to_table(rows, SCHEMA))])
    assert set(loader.rejected) == {"unlabelled", "over_long"}
    assert len(loader) + sum(loader.rejected.values()) == 50


def test_attribute_dropout_hides_labels_the_same_way_in_every_run(tiny_base: str) -> None:
    rows = to_table(list(Lab(LabSettings(num_rows=40, rated_share=1)).rows()), SCHEMA)
    spec = ExampleSpec(tiny_base, SCHEMA, "steerlm", 512)
    shown, half, again = (
        Examples([PolicyExamples(spec, "human", Calibration(), d, seed=0)(rows)]) for d in (0.0, 0.5, 0.5)
    )
    assert sum(half.lengths) < sum(shown.lengths)
    assert half.lengths.tolist() == again.lengths.tolist()


def test_attribute_dropout_makes_lone_labels_as_common_as_any_other_number(tiny_base: str) -> None:
    maker = PolicyExamples(
        ExampleSpec(tiny_base, SCHEMA, "steerlm", 512), "human", Calibration(), attribute_dropout=0.5, seed=0
    )
    values = dict.fromkeys(SCHEMA.names, 1.0)
    found = Counter(len(maker._shown(f"{i}", 0, values)) for i in range(3000))
    assert found[5] == pytest.approx(1500, abs=100)
    assert [found[n] for n in range(5)] == pytest.approx([300] * 5, abs=60)
    assert maker._shown("1", 0, {}) == {}


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="packs_per_step 3 is less than num_workers 4"):
        LearnerSettings(num_workers=4, packs_per_step=3)
    with pytest.raises(ValueError, match="offload parameters needs zero_stage 3 or more, it is 2"):
        LearnerSettings(offload="parameters")
    with pytest.raises(ValueError, match="max_tokens 4096 must not exceed pack_tokens 1024"):
        LearnerSettings(max_tokens=4096)
    zero = deepspeed_config(LearnerSettings(zero_stage=3, offload="parameters", precision="bf16"))["zero_optimization"]
    assert (zero["stage"], zero["offload_param"], zero["offload_optimizer"]) == (
        3,
        {"device": "cpu"},
        {"device": "cpu"},
    )
    with pytest.raises(
        ValueError, match=r"patience 3 counts validations during training, and there are none; set validate_every"
    ):
        LearnerSettings(patience=3)


def test_a_weight_for_an_attribute_the_run_does_not_have_names_the_nearest() -> None:
    with pytest.raises(
        SettingsError, match=r"predictor.attribute_weights: unknown attribute 'humour' \(did you mean 'humor'\?\)"
    ):
        load(Preset, DEMO, ["predictor.attribute_weights={humour: 2}"])
    with pytest.raises(SettingsError, match=r"attribute_weights.humor"):
        load(Preset, DEMO, ["predictor.attribute_weights={humor: 0}"])
