"""The loss of any decoder some positions at a time is its own loss, whatever it does to its logits."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from actors.kernels import cross_entropy
from actors.kernels.cross_entropy import IGNORED, LogitMap
from actors.kernels.varlen import VARLEN, packed
from actors.modeling import model_folder
from actors.modeling.model_folder import fit_embeddings, vocabulary_size
from actors.modeling.policy import PolicyLoss, PolicyTask
from actors.modeling.vocabulary_loss import VocabularyLoss
from data.attributes import shipped
from tests.support.live_bytes import LiveBytes
from tests.support.tiny_decoders import FAMILIES, SHAPE, decoder, save_decoder

SCHEMA = shipped("lab")
VOCABULARY = 500


def _pack() -> tuple[dict[str, object], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (192,), generator=generator)
    positions_N = torch.cat([torch.arange(20, 99), torch.arange(120, 191), torch.zeros(42, dtype=torch.long)])
    targets_N = ids[positions_N + 1]
    targets_N[-42:] = IGNORED
    return packed([ids[:100].numpy(), ids[100:].numpy()]), positions_N, targets_N


def _loss_and_gradients(loss: PolicyLoss) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss.zero_grad()
    total = loss(*_pack())
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_the_loss_and_all_gradients_are_the_models_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(family, VOCABULARY)
    model.set_attn_implementation(VARLEN)
    loss = PolicyLoss(model.eval())
    expected, expected_gradients = _loss_and_gradients(loss)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 64 * VOCABULARY)
    with LiveBytes() as live:
        loss(*_pack())
    assert live.largest < 192 * VOCABULARY, "no tensor has the size of all logits"
    found, gradients = _loss_and_gradients(loss)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().clamp_min(1e-3)
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, rtol=0, atol=1e-5, msg=name)


def test_what_a_model_does_to_its_logits_is_measured() -> None:
    maps = {
        family: VocabularyLoss(decoder(family, 90)).logit_map for family in ("llama", "gemma2", "granite", "cohere")
    }
    assert maps["llama"] == LogitMap()
    assert (maps["gemma2"].scale, maps["gemma2"].cap) == (pytest.approx(1, rel=1e-5), pytest.approx(3))
    assert maps["granite"] == LogitMap(0.25)
    assert maps["cohere"] == LogitMap(0.25)


class _Shifted(LlamaForCausalLM):
    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = output.logits + torch.arange(output.logits.shape[-1])
        return output


def test_a_model_with_another_map_keeps_all_logits_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = _Shifted(LlamaConfig(vocab_size=VOCABULARY, **SHAPE, attn_implementation=VARLEN))
    with caplog.at_level(logging.WARNING):
        loss = PolicyLoss(model)
    assert (
        "cross-entropy: all logits of a pack at once, _Shifted: its logits are neither scaled nor capped" in caplog.text
    )
    expected, _ = _loss_and_gradients(loss)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 64 * VOCABULARY)
    assert _loss_and_gradients(loss)[0] == expected


def test_llamas_vocabulary_grows_to_a_multiple_of_64() -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tokens = SimpleNamespace(tokenizer=range(128_257))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128_256, **shape))
    fit_embeddings(model, tokens, padded=True)
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (128_320, 8)
    assert vocabulary_size(model) == 128_257
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=128_256, **shape))
    fit_embeddings(plain, tokens)
    assert plain.lm_head.weight.shape == (128_257, 8)
    assert vocabulary_size(plain) == 128_257


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_padding_of_the_vocabulary_has_no_part_in_the_loss_and_is_not_saved(
    family: str, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`llama` has tied embeddings here, `mistral` an output layer of its own."""
    task = PolicyTask(save_decoder(family, tiny_base, str(tmp_path / "base"), 597), SCHEMA, "steerlm")
    small = task.build()
    assert small.model.config.vocab_size == 600, "a small vocabulary is not padded"
    monkeypatch.setattr(model_folder, "PADDED_VOCABULARY", 500)
    module = task.build()
    assert module.model.get_output_embeddings().weight.shape == (640, 32)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            module.get_parameter(name)[: len(parameter)] = parameter
        module.model.get_output_embeddings().weight[600:] = 9.0  # would win every softmax
    expected, gradients = _loss_and_gradients(small)
    for chunk in (2**26, 64 * 640):
        monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", chunk)
        found, padded_gradients = _loss_and_gradients(module)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in padded_gradients.items():
            torch.testing.assert_close(gradient[: len(gradients[name])], gradients[name], rtol=1e-4, atol=1e-4)
            assert not gradient[len(gradients[name]) :].any()
    task.save(module, module.state_dict(), str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.config.vocab_size == saved.get_output_embeddings().weight.shape[0] == 600
    module.model.set_attn_implementation("sdpa")  # one conversation has no bounds of segments
    with torch.no_grad():
        ids = torch.arange(4, 20)[None]
        torch.testing.assert_close(saved(ids).logits, module.model(ids).logits[..., :600], rtol=1e-4, atol=1e-4)
    assert module.model.config.vocab_size == 640, "the live model stays as it is"
