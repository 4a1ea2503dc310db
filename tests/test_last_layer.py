"""Scoring computes in the last layer what the heads read, and nothing else: same numbers, and nothing left behind."""

import logging

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    MixtralConfig,
    MixtralModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from actors.kernels.last_layer import _log_once, last_layer, only_read
from actors.kernels.varlen import READS, VARLEN, packed

SIZE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZE | {"num_key_value_heads": 2}
NARROWED = {
    "llama": lambda: LlamaModel(LlamaConfig(**GROUPED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**GROUPED, head_dim=8)),
    "gemma2": lambda: Gemma2Model(Gemma2Config(**GROUPED, head_dim=8)),
    "mistral": lambda: MistralModel(MistralConfig(**GROUPED, sliding_window=20)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**SIZE, local_attention=16, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    ),
}
LENGTHS = (7, 61, 1, 130, 33)


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation(VARLEN)
    return model.eval()


def _pack() -> tuple[dict[str, object], torch.Tensor]:
    """Five segments, and what is read of them: one position, several, none, in no order."""
    rng = np.random.default_rng(0)
    return packed([rng.integers(4, 300, n) for n in LENGTHS]), torch.tensor([6, 198, 30, 67, 7, 231, 198])


@pytest.mark.parametrize("name", NARROWED)
@torch.inference_mode()
def test_what_is_read_is_the_same_with_the_last_layer_narrowed(name: str) -> None:
    torch.manual_seed(0)
    model = _ready(NARROWED[name]())
    assert last_layer(model) is not None
    pack, reads_S = _pack()
    expected = model(**pack).last_hidden_state[0]
    with only_read(model, reads_S, sum(LENGTHS)):
        narrowed = model(**pack).last_hidden_state[0]
    torch.testing.assert_close(narrowed[reads_S], expected[reads_S], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(narrowed, expected, atol=1e-3), "nothing was narrowed"


@torch.inference_mode()
def test_nothing_is_left_behind_after_an_error_either() -> None:
    model = _ready(NARROWED["llama"]())
    pack, reads_S = _pack()
    expected = model(**pack).last_hidden_state
    with pytest.raises(ZeroDivisionError), only_read(model, reads_S, sum(LENGTHS)):
        _ = 1 / 0
    assert not any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, READS) for m in model.modules())
    torch.testing.assert_close(model(**pack).last_hidden_state, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "reason"), [("gpt2", "no list called `layers`"), ("mixtral", "no `mlp` of linear layers")]
)
@torch.inference_mode()
def test_a_model_built_otherwise_is_left_as_it_is_and_the_log_says_so(
    name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = {
        "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)),
        "mixtral": lambda: MixtralModel(MixtralConfig(**GROUPED, num_local_experts=2)),
    }
    _log_once.cache_clear()
    model = _ready(made[name]())
    pack, reads_S = _pack()
    with caplog.at_level(logging.INFO), only_read(model, reads_S, sum(LENGTHS)):
        narrowed = model(**pack).last_hidden_state
    torch.testing.assert_close(narrowed, model(**pack).last_hidden_state, rtol=0, atol=0)
    assert reason in caplog.text
