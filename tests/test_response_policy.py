"""SteerLM 2.0's loss by hand; with equal weights plain fine-tuning; packs and chunks of logits change nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.kernels import cross_entropy
from actors.kernels.cross_entropy import IGNORED
from actors.modeling.policy import PolicyTask
from actors.modeling.response_policy import GroupLoss, Groups, GroupTask, answers_of, group_weights, spread
from data.attribute_likelihood import divergence, log_softmax
from data.attributes import shipped
from data.examples import Example

SCHEMA = shipped("lab")


def _groups(log_target: list[float], log_before: list[float]) -> Groups:
    """Two prompts with two answers each, of 2 and 4, and of 3 and 3 tokens; the last target is padding."""
    return Groups(
        torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([2, 2]),
        torch.tensor(log_target),
        torch.tensor(log_before),
    )


TARGETS = torch.tensor([5] * 12 + [IGNORED])
NATS = torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 1, 0, 1, 1, 1, 1, 0])


def test_the_weighted_loss_by_hand() -> None:
    """The policy's log Q are -1, -1, -2, -3, those of Q' -1, -2, -2, -2: b' is softmax(0, 1) and softmax(0, -1)."""
    log_target = [math.log(0.9), math.log(0.1), math.log(0.5), math.log(0.5)]
    factors_N, kl = group_weights(_groups(log_target, [-1, -2, -2, -2]), NATS, TARGETS)
    low, high = 1 / (1 + math.e), math.e / (1 + math.e)
    weights = [0.9 - low, 0.1 - high, 0.5 - high, 0.5 - low]
    by_hand = (weights[0] * 1 + weights[1] * 1) / 3 + (weights[2] * 2 + weights[3] * 3) / 3
    assert float((factors_N * NATS).sum()) == pytest.approx(by_hand, abs=1e-6)
    first = 0.9 * math.log(0.9 / low) + 0.1 * math.log(0.1 / high)
    second = 0.5 * math.log(0.5 / high) + 0.5 * math.log(0.5 / low)
    assert float(kl) == pytest.approx(first + second, abs=1e-6)


def test_with_equal_weights_it_is_plain_fine_tuning() -> None:
    factors_N = spread(_groups([0.0] * 4, [0.0] * 4), torch.full((4,), 0.5), TARGETS)
    first, second = NATS[:6].mean(), NATS[6:12].mean()
    assert float((factors_N * NATS).sum()) == pytest.approx(float(first + second), abs=1e-6)


def test_with_equal_weights_a_model_loses_what_it_loses_in_plain_fine_tuning(task: GroupTask) -> None:
    torch.manual_seed(0)
    loss, inputs = task.build(), task.inputs(EXAMPLES[:1], "cpu")
    groups, targets_N = inputs["groups"], inputs["targets_N"]
    equal = spread(groups, torch.full((3,), 1 / 3), targets_N)
    found = loss.loss(inputs["pack"], inputs["positions_N"], targets_N, lambda nats_N: equal)
    plain = PolicyTask(task.base, SCHEMA, "steerlm")
    answers = answers_of(EXAMPLES[0])
    expected = loss.loss(**plain.inputs(answers, "cpu")) / sum(map(plain.target_weight, answers))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_at_the_target_no_answer_counts() -> None:
    """Q' = Q: the policy's shares are equal, and so are the targets."""
    factors_N, kl = group_weights(_groups([math.log(0.5)] * 4, [-1, -1, -2, -3]), NATS, TARGETS)
    assert float(factors_N.abs().max()) < 1e-6
    assert float(kl) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def task(tiny_base: str) -> GroupTask:
    return GroupTask(tiny_base, SCHEMA, "steerlm")


def _example(seed: int, lengths: list[int]) -> Example:
    """Answers of these lengths, each behind a prompt of 7 tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, 590, 7 * len(lengths) + sum(lengths)).astype(np.int32)
    trained = np.concatenate([np.arange(7 + n) >= 7 for n in lengths])
    ends = (np.cumsum([7 + n for n in lengths]) - 1).astype(np.int32)
    before = -6.3 * np.array(lengths) + rng.normal(size=len(lengths))
    return Example(ids, trained, ends, np.stack([log_softmax(rng.normal(size=len(lengths))), before], 1))


EXAMPLES = [_example(1, [5, 9, 20]), _example(2, [30, 3, 14])]


def _run(loss: GroupLoss, task: GroupTask, packs: list[list[Example]]) -> tuple[float, dict[str, torch.Tensor]]:
    loss.zero_grad()
    total = sum(loss(**task.inputs(pack, "cpu", 256)) for pack in packs)
    assert isinstance(total, torch.Tensor)
    total.backward()
    return float(total.detach()), {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}


def _expected(loss: GroupLoss, task: PolicyTask) -> tuple[float, dict[str, torch.Tensor]]:
    """Each answer alone in a forward; the KL and its gradient by autograd through all of them."""
    loss.zero_grad()
    plain, kl, objective = PolicyTask(task.base, SCHEMA, "steerlm"), 0.0, torch.tensor(0.0)
    for example in EXAMPLES:
        nats = []
        for answer in answers_of(example):
            inputs = plain.inputs([answer], "cpu")
            nats.append(loss.loss(inputs["pack"], inputs["positions_N"], inputs["targets_N"]))
        log_own = torch.log_softmax(-torch.stack(nats) - torch.tensor(example.values_SA[:, 1]), 0)
        log_target = torch.tensor(example.values_SA[:, 0])
        found = (log_target.exp() * (log_target - log_own)).sum()
        kl += divergence(example.values_SA[:, 0], log_own.detach().double().numpy())
        objective = objective + found * len(nats) / float(example.trained_T.sum())
    objective.backward()
    return kl, {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}


def test_a_pack_gives_the_kl_and_its_gradient_as_answers_one_by_one_do(
    task: GroupTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    loss = task.build()
    assert isinstance(loss, GroupLoss)
    expected, gradients = _expected(loss, task)
    assert expected > 0.1
    together = _run(loss, task, [EXAMPLES])
    apart = _run(loss, task, [EXAMPLES[:1], EXAMPLES[1:]])
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 64 * 600)
    chunked = _run(loss, task, [EXAMPLES])
    for found, own in (together, apart, chunked):
        assert found == pytest.approx(expected, rel=1e-4)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


def test_the_kl_falls_as_the_policy_learns(task: GroupTask) -> None:
    torch.manual_seed(0)
    loss = task.build()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-3)
    found = []
    for _ in range(12):
        optimizer.zero_grad()
        kl = loss(**task.inputs(EXAMPLES, "cpu", 256))
        kl.backward()
        optimizer.step()
        found.append(kl.item())
    assert found[-1] < found[0] / 2


def test_without_gradients_it_is_the_kl_alone(task: GroupTask, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loss = task.build()
    expected, _ = _run(loss, task, [EXAMPLES])
    with torch.no_grad():
        assert loss(**task.inputs(EXAMPLES, "cpu")).item() == pytest.approx(expected, rel=1e-4)
    assert sum(map(task.target_weight, EXAMPLES)) == 2
    task.save(loss, loss.state_dict(), str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "config.json").exists()
