"""A model's shape is counted from its config alone: on the hub, in a folder, at a URI."""

import json
from pathlib import Path

import fsspec
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from actors.modeling.lora import linear_modules
from actors.modeling.model_shape import HubUnreachable, NotOnHub, read_config, shape_of, shape_of_small
from actors.modeling.settings import LoraSettings, SmallModel
from data.errors import UserError
from tests.support.llama_shapes import LLAMA_8B, SMOLLM2


@pytest.mark.parametrize(
    ("kind", "entries", "num_parameters"),
    [
        # As their model cards and weight files count them.
        ("llama", LLAMA_8B, 8_030_261_248),
        ("llama", SMOLLM2, 134_515_008),
        ("mixtral", {"vocab_size": 32_000}, 46_702_792_704),
    ],
)
def test_parameters_are_exact(kind: str, entries: dict[str, int], num_parameters: int) -> None:
    shape = shape_of(AutoConfig.for_model(kind, **entries))
    assert shape.num_parameters == num_parameters
    assert shape.vocabulary == entries["vocab_size"]


def test_layers_heads_and_experts_are_the_config_s() -> None:
    llama = shape_of(AutoConfig.for_model("llama", **LLAMA_8B))
    assert (llama.layers, llama.width, llama.feed_forward, llama.head_widths) == (32, 4096, 14_336, (4096, 1024))
    assert (llama.norms, llama.gated, llama.layer, llama.inactive) == (2 * 4096, True, 218_112_000, 0)
    assert llama.largest == 128_256 * 4096
    assert llama.cast == 32 * (218_112_000 - 2 * 4096) + llama.largest
    mixtral = shape_of(AutoConfig.for_model("mixtral"))
    assert (mixtral.experts_per_token, mixtral.feed_forward) == (2, 2 * 14_336)
    # 12.9 B of its 46.7 B are active (arXiv 2401.04088, section 2).
    assert (mixtral.num_parameters - mixtral.inactive) / 1e9 == pytest.approx(12.9, abs=0.05)
    gemma = shape_of(
        AutoConfig.for_model(
            "gemma3_text",
            hidden_size=64,
            num_hidden_layers=2,
            head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=1,
            intermediate_size=128,
        )
    )
    assert gemma.norms == 4 * 64 + (4 + 1) * 16
    assert not shape_of(
        AutoConfig.for_model(
            "gpt_neox", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
        )
    ).gated


def test_a_predictor_has_heads_and_no_output_layer() -> None:
    config = AutoConfig.for_model("llama", **LLAMA_8B, num_labels=5)
    assert shape_of(config, predictor=True).num_parameters == 8_030_261_248 - 128_256 * 4096 + 5 * 4096
    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    assert shape_of(AutoConfig.for_model("bert", **names), predictor=True).layers == 2


def test_the_linear_layers_are_those_that_adapters_go_to() -> None:
    config = AutoConfig.for_model("llama", **SMOLLM2 | {"num_hidden_layers": 2})
    shape, model = shape_of(config), AutoModelForCausalLM.from_config(config)
    assert [name for name, _ in shape.linears] == list(linear_modules(model, ()))
    narrow = LoraSettings(target_modules=("q_proj",))
    assert [size for name, size in shape.linears if narrow.adapts(name)] == [2 * 576] * 2


def test_the_small_model_is_counted_as_it_will_be_made(tiny_base: str) -> None:
    small = SmallModel(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=600, max_tokens=512
    )
    assert shape_of_small(small) == shape_of(read_config(tiny_base))
    from_disk = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert shape_of_small(small).num_parameters == from_disk.num_parameters()


def test_of_a_uri_the_config_alone_is_read(tiny_base: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/shapes/model/config.json", (Path(tiny_base) / "config.json").read_bytes())
    memory.pipe("/shapes/model/model.safetensors", b"these are no weights")
    assert shape_of(read_config("memory://shapes/model")) == shape_of(read_config(tiny_base))


def test_a_config_that_makes_no_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 0})
    )
    with pytest.raises(UserError) as caught:
        shape_of(read_config(str(tmp_path)))
    assert len(str(caught.value).splitlines()) == 1


def test_the_hub_is_asked_once_and_says_which_way_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(_: object, model: str, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("it would retry for long"))
    with pytest.raises(HubUnreachable, match="Name or service not known"):
        read_config("no-owner/no-model")
    assert len(asked) == 1


def test_a_model_that_the_hub_does_not_give_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    from huggingface_hub.errors import GatedRepoError

    def gated(*_: object, **__: object) -> None:
        raise GatedRepoError("access is restricted", response=requests.Response())

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", gated)
    with pytest.raises(NotOnHub, match="access is restricted"):
        read_config("no-owner/gated-model")
