"""Classifier-free guidance: the arithmetic over logits."""

import torch

from actors.generation.guidance import GuidedRow, guided


def test_the_arithmetic_is_the_paper_s() -> None:
    logits_RV = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 0.0], [5.0, 6.0, 7.0]])
    for guidance in (0.0, 0.5, 1.0, 1.5, 3.0):
        found_RV = guided(logits_RV, [GuidedRow(0, 1, guidance)])
        own_V, unguided_V = logits_RV[:2].log_softmax(-1)
        expected_V = (unguided_V + guidance * (own_V - unguided_V)).softmax(-1)
        torch.testing.assert_close(found_RV[0].softmax(-1), expected_V, atol=1e-6, rtol=0)
        assert torch.equal(found_RV[1:], logits_RV[1:])
    assert guided(logits_RV, []) is logits_RV
    assert torch.equal(guided(logits_RV, [GuidedRow(0, 1, 1.0)]), logits_RV)


def test_rows_in_bf16_are_guided_in_fp32_and_the_others_keep_their_values() -> None:
    logits_RV = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found_RV = guided(logits_RV, [GuidedRow(2, 0, 3.0)])
    expected_RV = guided(logits_RV.float(), [GuidedRow(2, 0, 3.0)])
    assert torch.equal(found_RV, expected_RV)
    assert torch.equal(found_RV[[0, 1, 3]], logits_RV[[0, 1, 3]].float())
    assert guided(logits_RV, []).dtype == torch.bfloat16


def test_a_token_that_is_impossible_stays_so_and_others_are_numbers() -> None:
    logits_RV = torch.tensor([[2.0, -torch.inf, -1.0], [-torch.inf, -torch.inf, 0.0]])
    for guidance in (0.0, 0.5, 2.0):
        assert guided(logits_RV, [GuidedRow(0, 1, guidance)])[0, :2].tolist() == [2.0, -torch.inf]
        assert torch.isfinite(guided(logits_RV, [GuidedRow(0, 1, guidance)])[0, 2])
