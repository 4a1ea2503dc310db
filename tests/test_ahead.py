"""Data is ready before its turn, in training and in annotation, and nothing else changes."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.kernels import transfer
from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from actors.training import shares as sharing
from actors.training.prepared import prepared
from actors.training.settings import LearnerSettings
from actors.training.shares import Share, Shares
from data.attributes import shipped
from data.conversation import to_table
from data.examples import Examples
from data.lab import Lab, LabSettings
from data.loader import PackedStep, Position

SCHEMA = shipped("lab")


def test_the_next_item_is_prepared_while_one_is_used() -> None:
    made, second = [], threading.Event()

    def prepare(item: int) -> int:
        made.append(item)
        if item == 1:
            second.set()
        return item * 10

    ahead = prepared(range(3), prepare, ahead=True)
    assert next(ahead) == (0, 0)
    assert second.wait(30), "the second is made before it is asked for"
    assert list(ahead) == [(1, 10), (2, 20)]
    assert made == [0, 1, 2]
    serial = prepared(range(3), prepare, ahead=False)
    assert next(serial) == (0, 0)
    assert made == [0, 1, 2, 0], "nothing is ahead"


@pytest.mark.parametrize("ahead", [True, False])
def test_an_error_comes_at_its_own_turn(ahead: bool) -> None:
    found = prepared([2, 1, 0], lambda i: 2 // i, ahead)
    assert [next(found), next(found)] == [(2, 1), (1, 2)]
    with pytest.raises(ZeroDivisionError):
        next(found)


class _Loader:
    """Three steps of two and three packs."""

    def __init__(self, examples: Examples):
        self.examples = examples

    def steps(self, start: Position) -> Any:
        for number, packs in enumerate([[[0, 1], [2]], [[3], [4, 5], [6]], [[7], [8]]]):
            yield PackedStep(self.examples, packs, 0, number == 0, start, 0.0, 0.0)


def _examples(tiny_base: str) -> Examples:
    from actors.training.examples import ExampleSpec, PredictorExamples

    rows = list(Lab(LabSettings(num_rows=12, rated_share=1)).rows())
    return Examples([PredictorExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256))(to_table(rows, SCHEMA))])


@pytest.mark.parametrize("kind", [PolicyTask, PredictorTask])
def test_shares_made_ahead_are_the_same(kind: Any, tiny_base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader: Any = _Loader(_examples(tiny_base))
    task = kind(tiny_base, SCHEMA, "steerlm")
    workers = [Shares(task, LearnerSettings(), loader, torch.device("cpu"), rank, 2) for rank in range(2)]
    serial = [share for shares in workers for _, share in shares.steps(Position(), 5)]
    asked = []

    def always_ahead(items: Any, prepare: Any, ahead: bool) -> Any:
        asked.append(ahead)
        return prepared(items, prepare, True)

    monkeypatch.setattr(sharing, "prepared", always_ahead)
    found = [share for shares in workers for _, share in shares.steps(Position(), 5)]
    assert asked == [False, False], "a CPU has nothing to overlap"
    assert [_plain(share) for share in found] == [_plain(share) for share in serial]
    assert {pack.counts for share in serial for pack in share.packs} == {True, False}, "one is filled up"
    gpu: Any = SimpleNamespace(type="cuda")
    assert (
        list(Shares(task, LearnerSettings(), SimpleNamespace(steps=lambda _: ()), gpu, 0, 1).steps(Position(), 0)) == []
    )
    assert asked[2:] == [True]


def _plain(share: Share) -> Any:
    packs = [
        (pack.seed, pack.counts, [(k, v.tolist() if torch.is_tensor(v) else v) for k, v in _flat(pack.inputs)])
        for pack in share.packs
    ]
    return packs, share.weight, share.digest


def _flat(inputs: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in inputs.items() if k != "pack"] + list(inputs["pack"].items())


def test_copies_to_a_gpu_are_pinned_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: calls.append((a, k)) or self)
    transfer.to_device(np.arange(3), "cuda")
    assert calls == ["pinned", (("cuda",), {"non_blocking": True})]
    calls.clear()
    transfer.to_device(torch.arange(3), torch.device("cpu"))
    assert calls == [((torch.device("cpu"),), {})]


def test_the_next_pack_begins_before_the_scores_of_one_are_waited_for(tiny_predictor: str) -> None:
    predictor = Predictor.load(tiny_predictor)
    rater = Rater(predictor, 64, 64)
    rows = list(Lab(LabSettings(num_rows=6)).rows())
    expected = rater.rate(rows)
    order, real = [], predictor.start

    def start(*pack: Any) -> Any:
        number = sum(event == "begin" for event, _ in order)
        order.append(("begin", number))
        scores = real(*pack)
        return lambda: order.append(("wait", number)) or scores()

    predictor.start = start  # type: ignore[method-assign]
    found = rater.rate(rows)
    num_packs = len(order) // 2
    assert num_packs > 2
    assert order[:3] == [("begin", 0), ("begin", 1), ("wait", 0)]
    assert [n for event, n in order if event == "wait"] == list(range(num_packs))
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f, e)
