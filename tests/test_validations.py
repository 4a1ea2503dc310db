"""Which step is the best, and when to stop."""

import pytest
import torch

from actors.validations import Validations
from actors.weights import WeightsOnDisk, gathered


def test_training_stops_after_so_many_validations_without_improvement() -> None:
    validations = Validations(patience=2)
    improved, stopped = [], []
    for step, loss in ((2, 1.0), (4, 0.8), (6, 0.9), (8, 0.7), (10, 0.7), (12, float("nan"))):
        improved.append(validations.add(step, loss))
        stopped.append(validations.should_stop)
    assert improved == [True, True, False, True, False, False]
    assert stopped == [False] * 5 + [True]
    assert (validations.best_step, validations.best_loss) == (8, 0.7)
    assert [v["step"] for v in validations.curve] == [2, 4, 6, 8, 10, 12]


def test_without_patience_training_never_stops_early() -> None:
    validations = Validations()
    assert not any((validations.add(step, step), validations.should_stop)[1] for step in range(1, 50))


def test_weights_on_disk_are_those_of_the_step_they_were_kept_at() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    module[0].requires_grad_(False)
    assert gathered(module, zero_stage=0, rank=1, trained=True) == {}
    assert set(gathered(module, zero_stage=0, rank=0, trained=False)) == {"0.weight", "0.bias"}
    best, before = WeightsOnDisk(), module[1].weight.detach().clone()
    best.keep(gathered(module, zero_stage=0, rank=0, trained=True))
    with torch.no_grad():
        module[1].weight.add_(1)
    assert set(best.load()) == {"1.weight", "1.bias"}
    assert torch.equal(best.load()["1.weight"], before)
    best.remove()
    with pytest.raises(FileNotFoundError):
        best.load()


def test_a_tied_weight_is_whole_in_one_half() -> None:
    """Both its names must come from the same step, or the export would hold two versions of one weight."""
    module = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 3), "head": torch.nn.Linear(3, 4, bias=False), "other": torch.nn.Linear(3, 3)})
    module["head"].weight = module["embedding"].weight
    module["head"].requires_grad_(False)
    assert set(gathered(module, 0, 0, trained=False)) == {"embedding.weight", "head.weight"}
    assert set(gathered(module, 0, 0, trained=True)) == {"other.weight", "other.bias"}
