"""Which models can be split, by their configs alone, and which slices of the weights a part reads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from actors.modeling.model_folder import load_config, load_format
from actors.modeling.model_part import ModelPart
from actors.modeling.regressor import load_regressor
from data.errors import UserError

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def split(kind: str, num_parts: int, folder: Path, **more: object) -> None:
    ModelPart(0, num_parts).options(str(folder), AutoConfig.for_model(kind, **SHAPE | more))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3"])
def test_the_usual_decoders_can_be_split(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no weights of model\.embed_tokens\.weight"
    ):  # the first that it would read
        split(kind, 2, tmp_path)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gpt2", "transformers has no plan that splits a model of type gpt2: set it to 1, or name a predictor on ano"),
        ("bert", "transformers has no plan that splits a model of type bert"),
        ("phi3", "model of type phi3 has layers of the kind colwise_gather_output, rowwise_split_input, which is not"),
        ("mixtral", "model of type mixtral has layers of the kind moe_tp_experts, packed_colwise, which is not"),
        ("gpt_neox", "attention.query_key_value.weight of this gpt_neox model cannot be split as its plan says"),
    ],
)
def test_other_models_are_refused_by_name(kind: str, why: str, tmp_path: Path) -> None:
    ids = {"cls_token_id": 1, "sep_token_id": 1} if kind == "bert" else {}
    with pytest.raises(UserError, match=rf"^annotate\.tensor_parallel is 2, and .*{why}"):
        split(kind, 2, tmp_path, **ids)


def test_parts_must_divide_the_heads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is 4, which does not divide the model's 4 attention heads, 2 of keys and val"):
        split("llama", 4, tmp_path)


def test_the_parts_together_are_the_whole_and_none_has_more_than_its_slices(tiny_predictor: str) -> None:
    config, whole = load_config(tiny_predictor), load_file(Path(tiny_predictor) / "model.safetensors")
    parts = [ModelPart(rank, 2).options(tiny_predictor, config)["state_dict"] for rank in (0, 1)]
    for name, tensor in whole.items():
        one, other = (part[name] for part in parts)
        if any(layer in name for layer in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            torch.testing.assert_close(torch.cat([one, other]), tensor)
        elif any(layer in name for layer in ("o_proj", "down_proj")):
            torch.testing.assert_close(torch.cat([one, other], dim=1), tensor)
        else:
            torch.testing.assert_close(one, tensor)
            torch.testing.assert_close(other, tensor)


def test_a_folder_without_all_weights_is_refused(tiny_predictor: str, tmp_path: Path) -> None:
    folder = tmp_path / "predictor"
    folder.mkdir()
    for file in Path(tiny_predictor).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights of model\.layers\.1\.mlp\.up_proj\.weight; name a"):
        load_regressor(str(folder), load_format(str(folder)), part=ModelPart(1, 2))
