"""The warm-up's targets can be read off the text, and what it saves is a plain language model again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_backbones import save_backbone
from transformers import AutoModelForCausalLM

from actors.kernels import cross_entropy
from actors.modeling.model_folder import new_format
from actors.modeling.tokenizer import encoder
from actors.modeling.warmup import (
    CONSTANT,
    NUM_COUNTS,
    AnswerFeatures,
    TokenFeatures,
    WarmupHeads,
    WarmupLoss,
    WarmupTask,
    _running_mean,
    _surprise,
)
from data.attributes import shipped
from data.examples import Example
from data.lab import Lab, LabSettings
from data.tokens import ConversationTokens

SCHEMA = shipped("lab")


def examples(base: str, num_rows: int = 12) -> list[Example]:
    format = new_format(base, SCHEMA, "steerlm")
    encode = encoder(format.tokenizer)
    rows = Lab(LabSettings(num_rows=num_rows)).rows()
    tokens = [ConversationTokens(format.template, encode, "", row.messages).fitted(512) for row in rows]
    return [Example(t.ids_T, t.trained_T, t.turn_ends_S, np.zeros((len(t.turn_ends_S), 0), np.float32)) for t in tokens]


def warmup_task(base: str, some: list[Example]) -> WarmupTask:
    return WarmupTask(base, SCHEMA, "steerlm", AnswerFeatures.of(new_format(base, SCHEMA, "steerlm").tokenizer, some))


def test_running_counts_are_those_of_the_text_so_far(tiny_base: str) -> None:
    tokenizer = new_format(tiny_base, SCHEMA, "steerlm").tokenizer
    letters = TokenFeatures.of(tokenizer)
    ids = np.array(tokenizer.encode("Bees dance, I say. Bees make 12 jars!\nYes?", add_special_tokens=False))
    question = np.array(tokenizer.encode("Do bees make honey?", add_special_tokens=False))
    counts = letters.counts(ids, question)
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        logs = [
            np.log(n),
            np.log1p(len(text)),
            np.log1p(sum(c in ".!?" for c in text)),
            *(np.log1p(text.count(mark)) for mark in "\n?!,"),
        ]
        rates = [len(set(ids[:n])) / n, len(text) / n, sum(c.isdigit() for c in text) / n]
        np.testing.assert_allclose(counts[n - 1, :10], logs + rates, rtol=1e-5)
        assert counts[n - 1, 12] == pytest.approx(len(set(ids[:n]) & set(question)) / len(set(question)))
    assert counts[-1, 11] == pytest.approx(1 / len(ids))
    assert (counts[:, 13] == CONSTANT).all()


def test_the_running_mean_starts_anew_with_each_answer() -> None:
    hidden = torch.tensor([[2.0], [4.0], [10.0], [20.0], [30.0]])
    answers = torch.tensor([0, 0, 1, 1, 1])
    assert _running_mean(hidden, answers)[:, 0].tolist() == [2, 3, 10, 15, 20]


def test_surprise_is_a_tokens_loss_with_its_answers_mean_and_maximum_so_far() -> None:
    nats, answers = torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0]), torch.tensor([0, 0, 0, 1, 1])
    raw = torch.tensor([[1, 1, 1], [5, 3, 5], [3, 3, 5], [2, 2, 2], [4, 3, 4]], dtype=torch.float32)
    expected = (raw - raw.mean(0)) / raw.std(0, correction=0)
    torch.testing.assert_close(_surprise(nats, answers, torch.tensor([3, 2])), expected, atol=1e-4, rtol=1e-4)


def test_the_losses_are_the_same_without_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a warm-up and a predictor that stays a language model compute them."""
    torch.manual_seed(0)
    heads, ids = WarmupHeads(16, surprise=True), torch.randint(400, (150,))
    positions, answers = torch.arange(10, 140), torch.arange(130) // 65
    rest = {"lengths_A": torch.tensor([65, 65]), "counts_NF": torch.randn(130, NUM_COUNTS)}
    found = []
    for chunk in (cross_entropy.CHUNK_LOGITS, 64 * 400):
        monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", chunk)
        torch.manual_seed(1)
        hidden_TD, vocabulary_VD = torch.randn(150, 16, requires_grad=True), torch.randn(400, 16, requires_grad=True)
        loss = heads(hidden_TD, vocabulary_VD, ids, positions, answers, **rest)
        loss.backward()
        found.append((loss.detach(), hidden_TD.grad, vocabulary_VD.grad))
    for chunked, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-4)


def test_a_packed_row_has_the_loss_of_its_examples_one_by_one(tiny_base: str) -> None:
    some = examples(tiny_base)
    task = warmup_task(tiny_base, some)
    torch.manual_seed(0)
    module = task.build()
    with torch.no_grad():
        together = module(**task.inputs(some, "cpu"))
        apart = sum(module(**task.inputs([e], "cpu")) for e in some)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3)


def test_training_teaches_the_counts_and_saves_a_language_model(tiny_base: str, tmp_path: Path) -> None:
    some = examples(tiny_base)
    task = warmup_task(tiny_base, some)
    torch.manual_seed(0)
    module = task.build()
    assert isinstance(module, WarmupLoss)
    inputs, num = task.inputs(some, "cpu"), sum(task.target_weight(e) for e in some)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = module(**inputs) / num
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    task.save(module, module.state_dict(), str(tmp_path / "model"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    weights = dict(saved.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in module.model.named_parameters())


def test_an_encoder_is_not_warmed_up(tmp_path: Path) -> None:
    base = save_backbone("bert", str(tmp_path))
    task = WarmupTask(
        base,
        SCHEMA,
        "steerlm",
        AnswerFeatures(TokenFeatures(*(np.zeros(1),) * 9), np.zeros(NUM_COUNTS), np.ones(NUM_COUNTS)),
    )
    with pytest.raises(ValueError, match=r"set predictor\.warmup to null"):
        task.build()
