"""Low-rank adapters: the exported plain model is the adapted one, sharded or not; what is trained and what is not."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_backbones import save_backbone

from actors.modeling.lora import add_adapters, merged
from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import LoraSettings
from actors.modeling.train_task import TrainTask
from actors.training.examples import ExampleSpec, PolicyExamples, PredictorExamples
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Examples, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")
LORA = LoraSettings(rank=4, alpha=8)


def _trained(base: str, kind: str) -> torch.nn.Module:
    """A module with adapters that are no longer the zero they start from."""
    torch.manual_seed(0)
    task = {"policy": PolicyTask, "predictor": PredictorTask}[kind](base, SCHEMA, "steerlm")
    module = task.build()
    add_adapters(module.model, LORA, module.heads)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "policy"),
        ("llama", "predictor"),
        ("gpt2", "predictor"),
        ("bert", "predictor"),
        ("roberta", "predictor"),
    ],
)
def test_the_exported_model_is_plain_and_gives_the_adapted_ones_numbers(
    family: str, kind: str, tiny_base: str, tmp_path: Path
) -> None:
    base = tiny_base if family == "llama" else save_backbone(family, str(tmp_path / "base"))
    module = _trained(base, kind)
    folder = str(tmp_path / "model")
    task = {"policy": PolicyTask, "predictor": PredictorTask}[kind](base, SCHEMA, "steerlm")
    state = copy.deepcopy(module.state_dict())
    task.save(module, merged(module, state), folder)
    plain = type(module.model).from_pretrained(folder).eval()
    assert not [name for name in plain.state_dict() if "lora" in name or "base_layer" in name]
    ids, untrained = torch.arange(5, 60)[None], task.build().eval().model
    for packing in (module.model, untrained):
        packing.set_attn_implementation("sdpa")  # one conversation has no bounds of segments
    with torch.no_grad():
        adapted = module.model(input_ids=ids).logits
        assert (plain(input_ids=ids).logits - adapted).abs().max() < 1e-5
        before = untrained(input_ids=ids).logits
    assert (adapted - before).abs().max() > 1e-3, "adapters that change nothing would prove nothing"


def test_heads_are_trained_in_full_and_the_rest_only_through_adapters(tiny_base: str) -> None:
    module = _trained(tiny_base, "predictor")
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert [name for name in trained if "lora_" not in name] == ["model.score.weight"]
    assert len([name for name in trained if "lora_A" in name]) == 2 * 7
    policy = PolicyTask(tiny_base, SCHEMA, "steerlm").build()
    add_adapters(policy.model, LoraSettings(target_modules=("q_proj", "v_proj")), policy.heads)
    assert {name.split(".")[-4] for name, p in policy.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}


def test_a_target_that_no_module_has_is_named_with_those_there_are(tiny_base: str) -> None:
    policy = PolicyTask(tiny_base, SCHEMA, "steerlm").build()
    named, there = "no linear module of LlamaForCausalLM is named query", "it has down_proj, .*v_proj"
    with pytest.raises(ValueError, match=rf"{named}; {there}; set learner.lora.target_modules"):
        add_adapters(policy.model, LoraSettings(target_modules=("query",)), policy.heads)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("zero_stage", "kind"), [(2, "policy"), (3, "predictor")])
def test_two_workers_train_adapters_and_export_the_model_they_validated(
    zero_stage: int, kind: str, ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    """The predictor is an encoder, so that one training covers encoders under ZeRO-3 too."""
    base = tiny_base if kind == "policy" else save_backbone("bert", str(tmp_path / "base"))
    rows = to_table(list(Lab(LabSettings(num_rows=90, rated_share=1)).rows()), SCHEMA)
    spec = ExampleSpec(base, SCHEMA, "steerlm", 256)
    maker = (
        PredictorExamples(spec)
        if kind == "predictor"
        else PolicyExamples(spec, "human", Calibration(), attribute_dropout=0.0, seed=0)
    )
    examples, output = Storage(str(tmp_path)) / "examples", Storage(str(tmp_path)) / "out"
    write_table(maker(rows), examples)
    task: TrainTask = (PredictorTask if kind == "predictor" else PolicyTask)(base, SCHEMA, "steerlm")
    settings = LearnerSettings(
        num_workers=2,
        zero_stage=zero_stage,
        precision="fp32",
        pack_tokens=256,
        max_tokens=256,
        packs_per_step=2,
        learning_rate=5e-3,
        epochs=2,
        lora=LORA,
    )
    metrics = fit("test", task, settings, Corpus.of(examples), output, Split(8))
    losses = [p.loss for p in metrics.losses]
    # Little: a random backbone's frozen embeddings leave the adapters little to work with.
    assert np.mean(losses[-5:]) < 0.99 * np.mean(losses[:5])

    exported = type(task)(os.path.join(output.path, "model"), SCHEMA, "steerlm")
    module, all_of_them = exported.build().eval(), Examples(examples.tables())
    held_out = [all_of_them[i] for i, group in enumerate(all_of_them.groups) if Split(8).validates(group)]
    with torch.no_grad():
        loss = sum(module(**exported.inputs([e], "cpu")).item() for e in held_out) / sum(
            exported.target_weight(e) for e in held_out
        )
    assert loss == pytest.approx(metrics.validation_loss, rel=1e-5)
