"""The arithmetic of a step agrees with what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from actors.modeling.policy import PolicyTask
from actors.training.flops import Arithmetic
from data.attributes import shipped
from data.examples import Example


def test_a_step_has_the_arithmetic_that_torch_counts(tiny_base: str) -> None:
    task = PolicyTask(tiny_base, shipped("lab"), "steerlm")
    module = task.build()
    # Multiples of 64: nothing is filled up.
    ids = torch.arange(256).numpy() % 500
    trained = torch.arange(256).numpy() >= 128
    example = Example(ids, trained, ids[:0], ids[:0])
    counter = FlopCounterMode(display=False)
    with counter:
        module(**task.inputs([example], "cpu")).backward()
    arithmetic = Arithmetic.of(module.model)
    # torch does not count fused attention on a CPU.
    assert arithmetic.flops(256, 128, squares=0) == pytest.approx(counter.get_total_flops(), rel=0.02)
    # Causal: half of a square for scores and for values, twice more in the backward pass, in 2 layers of width 32.
    assert arithmetic.flops(0, 0, squares=200.0**2) == 3 * 2 * (2 * 200 * 200 / 2 * 32) * 2
