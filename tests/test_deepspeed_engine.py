"""What the engine gathers for the export."""

import torch

from actors.training.deepspeed_engine import gathered


def test_frozen_and_trained_weights_are_gathered_on_the_first_worker_only() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    module[0].requires_grad_(False)
    assert gathered(module, zero_stage=0, rank=1, trained=True) == {}
    assert set(gathered(module, zero_stage=0, rank=0, trained=False)) == {"0.weight", "0.bias"}
    assert set(gathered(module, zero_stage=0, rank=0, trained=True)) == {"1.weight", "1.bias"}


def test_a_tied_weight_is_whole_in_one_half() -> None:
    """Both its names must come from the same step, or the export would hold two versions of one weight."""
    module = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(4, 3),
            "head": torch.nn.Linear(3, 4, bias=False),
            "other": torch.nn.Linear(3, 3),
        }
    )
    module["head"].weight = module["embedding"].weight
    module["head"].requires_grad_(False)
    assert set(gathered(module, 0, 0, trained=False)) == {"embedding.weight", "head.weight"}
    assert set(gathered(module, 0, 0, trained=True)) == {"other.weight", "other.bias"}
