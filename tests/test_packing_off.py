"""Training one by one: the same trajectory as with packs, sharded or not; what would mix is refused before a step."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_families import save_family

from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import LoraSettings
from actors.scoring.predictor import Predictor
from actors.training.examples import ExampleSpec, PolicyExamples, PredictorExamples
from actors.training.forwards import forwards, rounds
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.runner.preset import AnnotateSettings
from jobs.runner.stage import StageError, _plain

SCHEMA = shipped("lab")
SETTINGS = LearnerSettings(
    zero_stage=0, precision="fp32", pack_tokens=256, max_tokens=256, packs_per_step=4, learning_rate=1e-3, warmup=0.0
)


def test_forwards_and_rounds_micro_examples() -> None:
    assert forwards([[4, 2], [7]], packing=True) == [[4, 2], [7]]
    assert forwards([[4, 2], [7]], packing=False) == [[4], [2], [7]]
    assert list(rounds([[4, 2], []], packing=True)) == [[[4, 2], []]]
    assert list(rounds([[4, 2], [7], []], packing=False)) == [[[4], [7], []], [[2], [], []]]


def test_packing_changes_no_fingerprint() -> None:
    """Rounding apart, the result is the same: a finished stage stays finished."""
    for settings in (SETTINGS, AnnotateSettings()):
        assert _plain(settings.model_copy(update={"packing": "off"})) == _plain(settings)
        assert "packing" not in _plain(settings)


@pytest.mark.slow
@pytest.mark.ray
def test_one_by_one_on_two_workers_trains_as_packs_on_one(ray_cluster: object, tiny_base: str, tmp_path: Path) -> None:
    """Workers have unequal numbers of conversations in a step, in training and in validation, under ZeRO stage 3."""
    rows = list(Lab(LabSettings(num_rows=70, rated_share=1)).rows())
    examples = Storage(str(tmp_path)) / "examples"
    write_table(PredictorExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256))(to_table(rows, SCHEMA)), examples)
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", {"humor": 4.0, "verbosity": 0.25})
    losses, weights = {}, {}
    for packing in ("on", "off"):
        placed = {} if packing == "on" else {"num_workers": 2, "zero_stage": 3}
        settings = SETTINGS.model_copy(update={"packing": packing, **placed})
        output = Storage(str(tmp_path / f"packing-{packing}"))
        metrics = fit("test", task, settings, Corpus.of(examples), output, Split(8))
        losses[packing] = [p.loss for p in metrics.losses] + [metrics.validation_loss]
        weights[packing] = Predictor.load((output / "model").uri).module.model.state_dict()
    assert losses["off"] == pytest.approx(losses["on"], abs=2e-4)
    assert max(float((weights["on"][k] - weights["off"][k]).abs().max()) for k in weights["on"]) < 1e-3


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("sharded", [False, True])
def test_a_training_that_would_mix_conversations_is_refused_and_runs_without_packing(
    ray_cluster: object, tiny_base: str, tmp_path: Path, sharded: bool
) -> None:
    base = save_family("nemotron", str(tmp_path / "base"), tiny_base)
    rows = list(Lab(LabSettings(num_rows=20, rated_share=1)).rows())
    spec = ExampleSpec(base, SCHEMA, "steerlm", 256)
    write_table(
        PolicyExamples(spec, "human", Calibration(), 0.0, 0)(to_table(rows, SCHEMA)),
        Storage(str(tmp_path)) / "examples",
    )
    corpus, task = Corpus.of(Storage(str(tmp_path)) / "examples"), PolicyTask(base, SCHEMA, "steerlm")
    placed = {"num_workers": 2, "zero_stage": 3} if sharded else {"lora": LoraSettings(rank=4)}
    settings = SETTINGS.model_copy(update=placed)
    sentence = (
        r"test failed: a model of type nemotron cannot run several conversations in one sequence: "
        r"NemotronAttention gets no bounds of the segments: .*; set its learner's packing to off"
    )
    with pytest.raises(StageError, match=sentence):
        fit("test", task, settings, corpus, Storage(str(tmp_path / "packed")))
    if sharded:
        alone = settings.model_copy(update={"packing": "off"})
        metrics = fit("test", task, alone, corpus, Storage(str(tmp_path / "alone")))
        assert np.isfinite([point.loss for point in metrics.losses]).all()
