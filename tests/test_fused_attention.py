"""Which numbers reach a fused attention kernel, and which kernel is used: told on a CPU by kernels of our own."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.kernels import fused_attention
from actors.kernels.fused_attention import CHECK_TOLERANCE, difference, fused_kernel
from actors.kernels.segment_attention import per_segment
from actors.kernels.varlen import kernel_name
from actors.modeling.policy import PolicyTask
from actors.training.deepspeed_engine import Pack, TrainingEngine
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.examples import Example
from tests.support.engine_process import in_engine_process
from tests.support.tiny_decoders import save_decoder

SCHEMA = shipped("lab")
BF16 = (torch.device("cpu"), torch.bfloat16, 4, 2, 16)
ROTATED = ("llama", "qwen3", "mistral", "gemma3")


def right(q, k, v, cu, longest, causal, scale, window):
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    return per_segment(q, k, v, cu.tolist(), causal, scale, window, 0.0)[0]


def leaking(q, k, v, cu, longest, causal, scale, window):
    return right(q, k, v, cu[[0, -1]], longest, causal, scale, window)


def blind_to_windows(q, k, v, cu, longest, causal, scale, window):
    return right(q, k, v, cu, longest, causal, scale, None)


class _OnlyForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, *rest):
        return right(q, k, v, *rest)

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("this GPU has no backward pass for heads of 16")


class _WrongBackward(_OnlyForward):
    @staticmethod
    def backward(ctx, gradient):
        return (gradient * 2, gradient[:, ::2], gradient[:, ::2], *[None] * 5)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch):
    """Registers kernels for the CPU, as a GPU has them."""

    def register(**kernels):
        monkeypatch.setitem(fused_attention.FUSED, "cpu", kernels)

    fused_kernel.cache_clear()
    yield register
    fused_kernel.cache_clear()


def test_the_check_of_a_fused_kernel_passes_a_right_one_and_finds_wrong_ones() -> None:
    assert difference(right, *BF16) <= CHECK_TOLERANCE < difference(leaking, *BF16)
    assert (
        difference(right, *BF16, windowed=True) <= CHECK_TOLERANCE < difference(blind_to_windows, *BF16, windowed=True)
    )
    assert difference(_WrongBackward.apply, *BF16, backward=False) <= CHECK_TOLERANCE
    assert torch.is_grad_enabled(), "a check without gradients left them off for all that came after it"
    assert difference(_WrongBackward.apply, *BF16) > CHECK_TOLERANCE
    assert not difference(lambda *a: right(*a) * float("nan"), *BF16) <= CHECK_TOLERANCE, "not a number is not right"


def test_a_kernel_whose_backward_fails_is_not_used_in_training_and_the_log_says_so(
    on_cpu, caplog: pytest.LogCaptureFixture
) -> None:
    on_cpu(half=_OnlyForward.apply)
    with caplog.at_level(logging.INFO):
        assert fused_kernel(*BF16, backward=True, windowed=False) is None
        assert fused_kernel(*BF16, backward=False, windowed=False) == _OnlyForward.apply
    assert "half refuses forward and backward, 4/2 heads of 16" in caplog.text
    assert "this GPU has no backward pass for heads of 16" in caplog.text
    assert "attention: half (forward, 4/2 heads" in caplog.text


def test_the_next_kernel_is_taken_where_the_first_is_not_installed_or_fails(on_cpu) -> None:
    def absent(*_):
        raise ModuleNotFoundError("flash_attn")

    on_cpu(absent=absent, half=_OnlyForward.apply, whole=right)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fused_kernel(*BF16, backward=True, windowed=True) is right


def _dtypes_at_the_kernel(stage: int, checkpointing: bool, folders: dict[str, str]) -> dict[str, object]:
    """Train two packs of each model in bf16 with a spy as the CPU's fused kernel."""
    seen: set[tuple[torch.dtype, ...]] = set()

    def spy(q, k, v, cu, *rest):
        if len(cu) == 4:  # a check has another number of segments
            seen.add((q.dtype, k.dtype, v.dtype))
        return right(q, k, v, cu, *rest)

    fused_attention.FUSED["cpu"] = {"spy": spy}
    found: dict[str, object] = {}
    for family, folder in folders.items():
        seen.clear()
        settings = LearnerSettings(zero_stage=stage, precision="bf16", activation_checkpointing=checkpointing)
        engine = TrainingEngine(task := PolicyTask(folder, SCHEMA, "steerlm"), settings, 0, 1)
        config = engine.module.model.config
        engine.start(None)
        inputs = task.inputs(_examples(), "cpu")
        loss = engine.step([Pack(inputs, 0), Pack(inputs, 1)], 100.0, 1e-3)
        name = kernel_name(config, torch.device("cpu"), torch.bfloat16, backward=True)
        found[family] = sorted(map(str, seen)), name, loss, engine.describe()
    return found


def _examples() -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(rng.integers(4, 300, n).astype(np.int32), np.arange(n) >= n // 2, np.array([n - 1]), np.ones((1, 5)))
        for n in (50, 60, 82)
    ]


@pytest.mark.parametrize(("stage", "checkpointing"), [(2, False), (3, True)])
def test_in_bf16_training_query_key_and_value_reach_the_fused_kernel_in_bf16(
    stage: int, checkpointing: bool, tiny_base: str, tmp_path: Path
) -> None:
    folders = {family: save_decoder(family, tiny_base, str(tmp_path / family)) for family in ROTATED}
    found = in_engine_process(_dtypes_at_the_kernel, stage, checkpointing, folders)
    for family in ROTATED:
        dtypes, name, loss, line = found[family]
        assert dtypes == [str((torch.bfloat16,) * 3)], family
        assert name == "spy, a fused variable-length kernel"
        assert "attention: spy" in line
        assert np.isfinite(loss)
