"""Experts run in autocast's dtype, and a step counts only the experts that a token reaches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from actors.kernels.experts import use_grouped_experts
from actors.kernels.varlen import VARLEN
from actors.modeling.policy import PolicyLoss, PolicyTask
from actors.training.deepspeed_engine import Pack, TrainingEngine
from actors.training.flops import Arithmetic
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.examples import Example
from tests.support.engine_process import in_engine_process
from tests.support.tiny_decoders import decoder, save_decoder

SCHEMA = shipped("lab")
MIXED = ("mixtral", "qwen3_moe")


def _example() -> Example:
    ids = np.random.default_rng(0).integers(4, 300, 128).astype(np.int32)
    return Example(ids, np.arange(128) >= 64, np.array([127]), np.ones((1, 5)))


def _products(stage: int, folders: dict[str, str]) -> dict[str, tuple[list[str], int, list[float]]]:
    """The dtypes of the experts' products in a bf16 training, the experts' gradients, and the losses."""
    seen: list[str] = []
    real = torch.nn.functional.grouped_mm

    def spy(input, weight, **options):
        seen.append(f"{input.dtype} x {weight.dtype}")
        return real(input, weight, **options)

    torch.nn.functional.grouped_mm = spy
    found = {}
    for family, folder in folders.items():
        seen.clear()
        task = PolicyTask(folder, SCHEMA, "steerlm")
        engine = TrainingEngine(task, LearnerSettings(zero_stage=stage, precision="bf16"), 0, 1)
        engine.start(None)
        pack = Pack(task.inputs([_example()], "cpu"), 0)
        losses = [engine.step([pack, pack], 128.0, 3e-3) for _ in range(4)]
        found[family] = sorted(set(seen)), len(seen), losses
    return found


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_experts_multiply_in_bf16_and_learn(stage: int, tiny_base: str, tmp_path: Path) -> None:
    folders = {family: save_decoder(family, tiny_base, str(tmp_path / family)) for family in MIXED}
    found = in_engine_process(_products, stage, folders)
    for family in MIXED:
        dtypes, num_products, losses = found[family]
        assert dtypes == ["torch.bfloat16 x torch.bfloat16"], family
        assert num_products == 4 * 2 * 2 * 2, "four steps of two packs, two layers, two products"
        assert losses[-1] < losses[0]


def test_without_autocast_nothing_changes() -> None:
    model, ids = decoder("mixtral", 90).eval(), torch.arange(40)[None]
    model.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        expected = model(ids).logits
        use_grouped_experts()
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", MIXED)
def test_a_step_counts_only_the_experts_that_a_token_reaches(family: str) -> None:
    model = decoder(family, 300)
    model.set_attn_implementation(VARLEN)
    model.set_experts_implementation("eager")  # plain products, which torch counts
    task_inputs = PolicyTask("base", shipped("lab"), "steerlm").inputs([_example()], "cpu")
    counter = FlopCounterMode(display=False)
    with counter:
        PolicyLoss(model)(**task_inputs).backward()
    arithmetic = Arithmetic.of(model)
    assert arithmetic.flops(128, 64, squares=0) == pytest.approx(counter.get_total_flops(), rel=0.03)
