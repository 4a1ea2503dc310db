"""A loss, a gradient or a weight that is not finite ends a training with one sentence, and nothing is published."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorLoss, PredictorTask
from actors.training.divergence import Diverged, diverged, is_norm, not_finite, require_finite
from actors.training.examples import ExampleSpec, PolicyExamples, PredictorExamples
from actors.training.export_plan import saved_weights
from actors.training.save_model import parts_of
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Example, Examples, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
SETTINGS = LearnerSettings(pack_tokens=256, max_tokens=256, packs_per_step=2, epochs=2, checkpoint_every_s=0)


def _examples(tiny_base: str, folder: Path) -> Storage:
    """About 40 steps in two epochs."""
    rows = list(Lab(LabSettings(num_rows=60, rated_share=1)).rows())
    maker = PolicyExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256), "human", Calibration(), 0.0, seed=0)
    write_table(maker(to_table(rows, SCHEMA)), target := Storage(str(folder)) / "examples")
    return target


def _ends_with(match: str, task: PolicyTask, settings: LearnerSettings, examples: Storage, output: Storage) -> None:
    with pytest.raises(StageError, match=match) as caught:
        fit("test", task, settings, Corpus.of(examples), output, Split())
    assert len(str(caught.value)) <= 400
    assert not (output / "model").exists()
    assert not (output / "training.json").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("04-diverged")
def test_a_learning_rate_that_destroys_the_weights_ends_the_training_and_keeps_the_last_good_checkpoint(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    """The first steps are sane, for the rate rises; a checkpoint after each step."""
    settings = SETTINGS.model_copy(
        update={"learning_rate": 1e30, "warmup": 0.0, "checkpoint_every": 0.01, "max_failures": 3}
    )
    output = Storage(str(tmp_path / "out"))
    _ends_with(
        r"^test failed: (the loss is nan|the loss is inf|the gradient is not finite) at step \d, at a learning rate of "
        r"\S+e\+\d\d: learning_rate is 1e\+30, warmup 0, clip 1; lower learning_rate, or raise warmup. No model was "
        r"saved; earlier checkpoints are kept$",
        PolicyTask(tiny_base, SCHEMA, "steerlm"),
        settings,
        _examples(tiny_base, tmp_path),
        output,
    )
    for file in (output / "checkpoints").files(".safetensors"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values()), file


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: NaN by data")
def test_a_batch_whose_loss_is_infinite_ends_the_training_at_its_step(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    """The readers let no such label through; here one comes in the 12th pack."""

    class Poisoned(PolicyTask):  # in a function, so that it travels by value
        def build(self) -> Any:
            module, done = super().build(), []
            forward = module.forward

            def poisoned(*args: Any, **more: Any) -> torch.Tensor:
                done.extend([1] * torch.is_grad_enabled())  # of training: the check before it learns nothing
                return forward(*args, **more) * (math.inf if len(done) == 12 else 1.0)

            module.forward = poisoned
            return module

    task = Poisoned(tiny_base, SCHEMA, "steerlm")
    match = r"^test failed: the loss is inf at step 12, at a learning rate of "
    settings = SETTINGS.model_copy(update={"packs_per_step": 1})
    _ends_with(match, task, settings, _examples(tiny_base, tmp_path), Storage(str(tmp_path / "out")))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: NaN by a gradient that overflows")
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_gradient_that_overflows_while_the_loss_is_finite_ends_the_training(
    zero_stage: int, ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    """DeepSpeed's ZeRO passes over such a step without a word, so the loss never shows it."""

    class Steep(PolicyTask):
        def build(self) -> Any:
            module = super().build()
            forward = module.forward

            def steep(*args: Any, **more: Any) -> torch.Tensor:
                loss = forward(*args, **more)
                return loss + (loss - loss.detach()) * 1e38 * 1e38 if loss.requires_grad else loss

            module.forward = steep
            return module

    task, settings = Steep(tiny_base, SCHEMA, "steerlm"), SETTINGS.model_copy(update={"zero_stage": zero_stage})
    match = r"^test failed: (the gradient is not finite|the loss is nan) at step [12], "
    _ends_with(match, task, settings, _examples(tiny_base, tmp_path), Storage(str(tmp_path / "out")))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: NaN by dtype")
def test_a_base_model_that_overflowed_in_fp16_is_named_at_the_first_step(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    task = PolicyTask(_overflowed(tiny_base, tmp_path / "base"), SCHEMA, "steerlm")
    match = r"the loss is nan at step 1, .* a weight of the base model or a label is not finite, .*precision to fp32"
    settings = SETTINGS.model_copy(update={"precision": "bf16"})  # auto may choose fp32, which needs no such advice
    _ends_with(match, task, settings, _examples(tiny_base, tmp_path), Storage(str(tmp_path / "out")))


def _overflowed(base: str, folder: Path) -> str:
    """`base` as fp16, with a weight that was too large for it."""
    folder.mkdir()
    for file in Path(base).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(f"{base}/model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][0, 0] = 1e6
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_the_sentence_says_where_and_what_to_change() -> None:
    said = str(diverged("the loss is nan", 7, 1e-2, LearnerSettings(learning_rate=2e-2)))
    assert said.startswith("the loss is nan at step 7, at a learning rate of 1.00e-02: learning_rate is 0.02, warmup ")
    first = str(diverged("the loss is inf", 1, 0.0, LearnerSettings(), ["humor"]))
    assert first.startswith("the loss is inf (in humor alone) at step 1, ")
    assert max(len(said), len(first)) <= 330


@pytest.mark.parametrize(
    ("norm", "good"), [(0.0, True), (1e30, True), (-1.0, False), (math.inf, False), (math.nan, False)]
)
def test_a_norm_is_finite_and_not_negative(norm: float, good: bool) -> None:
    assert is_norm(norm) == good


def test_parts_are_named_only_if_others_are_finite() -> None:
    assert not_finite({"a": math.nan, "b": 1.0}) == ["a"]
    assert not_finite({"a": math.nan, "b": math.inf}) == []
    assert not_finite({}) == []


@pytest.mark.case("A7: weights that are not finite at the end")
def test_a_model_with_a_weight_that_is_not_finite_is_not_saved_but_masks_may_be_infinite() -> None:
    module = torch.nn.Module()
    module.model = torch.nn.Linear(2, 1, bias=False)
    module.model.register_buffer("mask", torch.tensor([-math.inf]))
    engine: Any = SimpleNamespace(module=module, rank=0, settings=LearnerSettings(zero_stage=0))
    weights = list(saved_weights(module, (), torch.float32))
    assert [weight.name for weight in weights] == ["model.weight", "model.mask"]
    require_finite(parts_of(engine, weights, None), 3, 1e-3, engine.settings)
    module.model.weight.data[0, 1] = math.nan
    with pytest.raises(Diverged, match=r"^weight model.weight is not finite at step 3, at a learning rate of 1.00e-03"):
        require_finite(parts_of(engine, weights, None), 3, 1e-3, engine.settings)


@pytest.mark.case("A7: an attribute whose label is infinite")
def test_the_attribute_whose_loss_is_not_finite_is_named(tiny_base: str) -> None:
    task = PredictorTask(tiny_base, SCHEMA, "steerlm")
    rows = to_table(list(Lab(LabSettings(num_rows=4, rated_share=1)).rows()), SCHEMA)
    examples = Examples([PredictorExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256))(rows)])
    found: Sequence[Example] = [examples[i] for i in range(2)]
    inputs, module = task.inputs(found, "cpu"), task.build()
    assert isinstance(module, PredictorLoss)
    inputs["weights_SA"][:] = 1
    inputs["values_SA"][0, 1] = math.inf
    with torch.no_grad():
        parts = task.loss_parts(module, inputs)
    assert tuple(parts) == task.parts == tuple(SCHEMA.names)
    assert not_finite(parts) == [SCHEMA.names[1]]
