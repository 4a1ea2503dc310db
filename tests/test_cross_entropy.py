"""Cross-entropy some positions at a time: the same loss and gradients as over all logits, in a share of the memory."""

import numpy as np
import pytest
import torch

from actors.kernels import cross_entropy
from actors.kernels.cross_entropy import IGNORED, LogitMap, fits, summed_cross_entropy
from tests.support.live_bytes import LiveBytes

PLAIN = LogitMap()


def _whole(hidden_ND, weight_VD, targets_N, bias_V=None, logit_map=PLAIN, num_tokens=None):
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V).float()
    logits_NV = logit_map(logits_NV)[:, :num_tokens]
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum", ignore_index=IGNORED)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.25), LogitMap(0.5, 3.0)])
def test_loss_and_gradients_are_those_of_all_logits(
    logit_map: LogitMap, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 64 * 500)
    torch.manual_seed(0)
    hidden_ND, weight_VD, bias_V = torch.randn(200, 16), torch.randn(500, 16), torch.randn(500)
    targets_N = torch.randint(490, (200,))
    targets_N[[3, 70, 199]] = IGNORED
    found, expected = [], []
    for results, loss_of in ((found, lambda *a: summed_cross_entropy(*a)[0]), (expected, _whole)):
        inputs = [t.clone().requires_grad_() for t in (hidden_ND, weight_VD, bias_V)]
        loss = loss_of(*inputs[:2], targets_N, inputs[2] if biased else None, logit_map, 490)
        (loss * 0.3).backward()
        results += [loss.detach(), *(t.grad for t in inputs[: 3 if biased else 2])]
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)
    assert not found[2][490:].any(), "entries that do not count get no gradient"


def test_the_loss_of_each_position_is_given_too_and_frozen_weights_get_no_gradient() -> None:
    torch.manual_seed(0)
    hidden_ND, weight_VD, targets_N = torch.randn(70, 8, requires_grad=True), torch.randn(90, 8), torch.arange(70)
    total, nats_N = summed_cross_entropy(hidden_ND, weight_VD, targets_N)
    logits_NV = hidden_ND @ weight_VD.T
    expected_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    torch.testing.assert_close(nats_N, expected_N.detach(), rtol=1e-5, atol=1e-5)
    assert not nats_N.requires_grad
    total.backward()
    assert hidden_ND.grad is not None
    assert weight_VD.grad is None


def test_under_autocast_the_products_are_bf16_and_the_sums_fp32() -> None:
    torch.manual_seed(0)
    hidden_ND, weight_VD = torch.randn(128, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
    targets_N = torch.randint(300, (128,))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = summed_cross_entropy(hidden_ND, weight_VD, targets_N)
        expected = _whole(hidden_ND, weight_VD, targets_N)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    loss.backward()
    assert hidden_ND.grad is not None
    assert weight_VD.grad is not None
    assert (hidden_ND.grad.dtype, weight_VD.grad.dtype) == (torch.float32, torch.float32)


def _peak_bytes(loss_of, num_targets: int, num_tokens: int, width: int) -> int:
    """Of forward and backward, the gradients that stay with it; on the meta device."""
    hidden_ND = torch.empty(num_targets, width, device="meta", requires_grad=True)
    weight_VD = torch.empty(num_tokens, width, device="meta", requires_grad=True)
    targets_N = torch.empty(num_targets, dtype=torch.long, device="meta")
    with LiveBytes() as live:
        loss_of(hidden_ND, weight_VD, targets_N).backward()
    return live.peak


def test_4096_targets_at_a_vocabulary_of_128k_take_at_most_a_quarter_of_the_memory() -> None:
    shape = 4096, 128_256, 2048
    whole, chunked = (_peak_bytes(f, *shape) for f in (_whole, lambda *a: summed_cross_entropy(*a)[0]))
    print(f"whole {whole / 2**30:.2f} GiB, chunked {chunked / 2**30:.2f} GiB")
    logits = 4096 * 128_256 * 4
    assert whole > 2 * logits, "all logits, and their gradient beside them"
    assert chunked <= whole / 4, "with the gradient of the weights, which both need"


def test_the_demo_keeps_the_path_over_all_logits() -> None:
    assert fits(1024, 1024 + 16)
    assert fits(8192, 8192)
    assert not fits(4096, 128_256)
    assert np.isclose(cross_entropy.CHUNK_LOGITS * 4 / 2**20, 256)
