"""A model is saved in files of bounded size, whole on nobody, to storage as slow as it likes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from actors.modeling import model_folder
from actors.modeling.lora import add_adapters, merged
from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import LoraSettings
from actors.modeling.train_task import TrainTask
from actors.training import export_plan
from actors.training.checkpoint import Checkpoint
from actors.training.checkpointer import Checkpointer
from actors.training.export_form import units
from actors.training.export_plan import file_name, owners, planned, saved_weights
from actors.training.save_model import save_trained_model
from actors.training.settings import LearnerSettings, export_dtype
from actors.training.zero_shards import ZeroShard, trained
from data.attributes import shipped
from data.storage import Storage

SCHEMA = shipped("lab")


def _engine(module: torch.nn.Module, **settings: Any) -> Any:
    return SimpleNamespace(rank=0, world=1, module=module, settings=LearnerSettings(zero_stage=0, **settings))


def _saved(task: TrainTask, engine: Any, target: Storage) -> dict[str, torch.Tensor]:
    save_trained_model(task, engine, None, target, 1, 1e-3)
    files = [name for name in target.names() if name.endswith(".safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(f"{target.path}/{file}").items()}


def test_a_tied_weight_is_saved_once_and_heads_in_float32() -> None:
    module, model = torch.nn.Module(), torch.nn.Module()
    model.embedding, model.head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False)
    model.head.weight = model.embedding.weight
    model.score = torch.nn.Linear(3, 2)
    model.register_buffer("steps", torch.tensor(3))
    model.register_buffer("made_anew", torch.ones(9), persistent=False)
    module.model, module.warmup_heads = model, torch.nn.Linear(3, 1)
    found = {w.name: w.dtype for w in saved_weights(module, ("score",), torch.bfloat16)}
    assert found == {
        "model.steps": torch.int64,
        "model.embedding.weight": torch.bfloat16,
        "model.score.weight": torch.float32,
        "model.score.bias": torch.float32,
    }


def test_files_are_bounded_and_a_layer_stays_together(tiny_base: str) -> None:
    module = PolicyTask(tiny_base, SCHEMA, "steerlm").build()
    weights = list(saved_weights(module, (), torch.float32))
    total = sum(w.num_bytes for w in weights)
    files = planned(weights, total // 5)
    assert [w for file in files for group in file for w in group] == weights
    largest = max(sum(w.num_bytes for w in group) for file in files for group in file)
    assert all(sum(w.num_bytes for g in file for w in g) <= max(total // 5, largest) for file in files)
    assert len(files) > 2
    layers = [{w.name.split(".")[3] for w in g} for file in files for g in file if ".layers." in g[0].name]
    assert layers == [{str(number)} for number in range(len(layers))]
    assert [len(planned(weights, n)) for n in (total, 10**12)] == [1, 1]
    assert [file_name(0, 1), file_name(1, 12)] == ["model.safetensors", "model-00002-of-00012.safetensors"]


def test_every_worker_writes_about_as_much() -> None:
    assert owners([4, 4, 4, 1], 2) == [0, 1, 0, 1]
    assert owners([9], 3) == [0], "a small model is written by the first one"
    assert owners([], 2) == []
    sizes = [3 + number % 3 for number in range(35)]
    filled = [sum(size for size, owner in zip(sizes, owners(sizes, 8), strict=True) if owner == o) for o in range(8)]
    assert max(filled) - min(filled) <= max(sizes)


def test_one_file_is_the_one_that_transformers_writes(tiny_base: str, tmp_path: Path) -> None:
    """To the byte: what is read from it, and every fingerprint of it, stay what they were."""
    task = PolicyTask(tiny_base, SCHEMA, "steerlm")
    engine = _engine(task.build(), precision="fp32")
    save_trained_model(task, engine, None, Storage(str(tmp_path / "ours")), 1, 1e-3)
    task.save(engine.module, engine.module.state_dict(), str(tmp_path / "theirs"))
    ours, theirs = (Storage(str(tmp_path / name)) for name in ("ours", "theirs"))
    assert ours.names() == theirs.names()
    assert (ours / "config.json").read_json() == (theirs / "config.json").read_json()
    for name in set(ours.names()) - {"config.json"}:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name


@pytest.mark.parametrize("remote", [False, True])
def test_several_files_are_one_model(
    remote: bool, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_plan, "SHARD_BYTES", 40_000)
    task = PolicyTask(tiny_base, SCHEMA, "steerlm")
    engine = _engine(task.build(), precision="fp32")
    target = Storage(f"memory://{tmp_path.name}/m" if remote else str(tmp_path / "m"))
    save_trained_model(task, engine, None, target, 1, 1e-3)
    assert len([n for n in target.names() if n.endswith(".safetensors")]) > 2
    folder = target.download(str(tmp_path / "local"))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = engine.module.model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_vocabulary_is_cut_off(
    tied: bool, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(
        vocab_size=597, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    base = tmp_path / "base"
    Storage(str(base)).upload(tiny_base)
    LlamaForCausalLM(config).save_pretrained(base)
    monkeypatch.setattr(model_folder, "PADDED_VOCABULARY", 500)
    task = PolicyTask(str(base), SCHEMA, "steerlm")
    module = task.build()
    assert module.model.get_input_embeddings().weight.shape == (640, 16)
    save_trained_model(task, _engine(module, precision="fp32"), None, Storage(str(tmp_path / "m")), 1, 1e-3)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert loaded.config.vocab_size == 600
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        saved, live = getattr(loaded, layer)().weight, getattr(module.model, layer)().weight
        assert torch.equal(saved, live[:600])


def test_experts_are_saved_as_the_hub_has_them(tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained as one tensor of all experts, saved as one for each, file by file as at once."""
    config = MixtralConfig(
        vocab_size=600, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, max_position_embeddings=64,
    )  # fmt: skip
    base = tmp_path / "base"
    Storage(str(base)).upload(tiny_base)
    MixtralForCausalLM(config).save_pretrained(base)
    task = PolicyTask(str(base), SCHEMA, "steerlm")
    module = task.build()
    module.model.save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr(export_plan, "SHARD_BYTES", 10_000)
    found = _saved(task, _engine(module, precision="fp32"), Storage(str(tmp_path / "ours")))
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert any(".experts.2." in name for name in found)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("precision", "export", "dtype"),
    [("bf16", "auto", "bfloat16"), ("fp32", "auto", "float32"), ("bf16", "float32", "float32")],
)
def test_weights_are_saved_as_they_were_computed_with(
    precision: Any, export: Any, dtype: str, tiny_base: str, tmp_path: Path
) -> None:
    settings = {"precision": precision, "export": export}
    assert export_dtype(LearnerSettings(**settings)) == dtype
    task = PredictorTask(tiny_base, SCHEMA, "steerlm")
    engine = _engine(task.build(), **settings)
    target = Storage(str(tmp_path / "m"))
    found = _saved(task, engine, target)
    assert (target / "config.json").read_json()["dtype"] == dtype
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in found.items()}
    assert kinds.pop("score.weight") == "float32"
    assert set(kinds.values()) == {dtype}
    again = PredictorTask(target.path, SCHEMA, "steerlm").build()
    assert torch.equal(again.model.score.weight, engine.module.model.score.weight)


def test_adapters_are_merged_module_by_module(tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files, and the weights are those that merging the whole model at once gives."""
    monkeypatch.setattr(export_plan, "SHARD_BYTES", 40_000)
    settings = LoraSettings(rank=2)
    task = PredictorTask(tiny_base, SCHEMA, "steerlm")
    module = task.build()
    add_adapters(module.model, settings, module.heads)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    engine = _engine(module, precision="fp32", lora=settings)
    target = Storage(str(tmp_path / "m"))
    found, expected = _saved(task, engine, target), merged(module, module.state_dict())
    expected = {name.removeprefix("model."): value for name, value in expected.items() if name.startswith("model.")}
    assert found.keys() == expected.keys()
    assert len([name for name in target.names() if name.endswith(".safetensors")]) > 2
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    whole = [
        unit for unit in units(engine, list(saved_weights(module, module.heads, torch.float32))) if not unit.streams
    ]
    assert whole
    assert all(len(unit.weights) == 3 for unit in whole), "a weight and its two adapters, not a layer"


def test_the_weights_of_an_earlier_step_are_saved(tiny_base: str, tmp_path: Path) -> None:
    task = PolicyTask(tiny_base, SCHEMA, "steerlm")
    engine = _engine(task.build(), precision="fp32")
    kept = Checkpointer(Storage(str(tmp_path / "best")), 0, 1, 1)
    shards = [ZeroShard(name, 0, p.detach().flatten() + 1) for name, p in trained(engine.module)]
    kept.save(3, {"weights": shards}, None)
    kept.wait()
    target = Storage(str(tmp_path / "m"))
    save_trained_model(task, engine, Checkpoint(kept.folder, 3), target, 5, 1e-3)
    found, live = load_file(tmp_path / "m" / "model.safetensors"), engine.module.model.state_dict()
    assert found
    assert all(torch.equal(value, live[name] + 1) for name, value in found.items())
