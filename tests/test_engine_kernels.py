"""Under the project's own DeepSpeed configuration every kernel setting gives the same training, and none waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actors.kernels import cross_entropy
from actors.kernels.compiled import compile_layers
from actors.kernels.norms import use_fused_norms
from actors.modeling.policy import PolicyTask
from actors.modeling.settings import LoraSettings
from actors.training.deepspeed_engine import Pack, TrainingEngine
from actors.training.settings import LearnerSettings
from actors.training.zero_shards import local_part, trained
from data.attributes import shipped
from data.examples import Example
from tests.support.engine_process import in_engine_process
from tests.support.tiny_decoders import decoder, save_decoder

SCHEMA = shipped("lab")


def _examples() -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(rng.integers(4, 300, n).astype(np.int32), np.arange(n) >= n // 2, np.array([n - 1]), np.ones((1, 5)))
        for n in (50, 60, 82)
    ]


class _Waits(TorchDispatchMode):
    """Counts the reads of a number that make the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _engine(folder: str, kept: Any = None, **settings: Any) -> tuple[TrainingEngine, list[Pack]]:
    learner = LearnerSettings(**{"precision": "fp32", "weight_decay": 0.0, **settings})
    torch.manual_seed(0)
    engine = TrainingEngine(task := PolicyTask(folder, SCHEMA, "steerlm"), learner, 0, 1)
    engine.start(kept)
    return engine, [Pack(task.inputs([example], "cpu"), seed) for seed, example in enumerate(_examples())]


def _trained(folder: str, chunk: int = 2**26, **settings: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of three steps, and the weights after them."""
    cross_entropy.CHUNK_LOGITS = chunk
    engine, packs = _engine(folder, **settings)
    losses = [engine.step(packs, 90.0, 1e-3) for _ in range(3)] + [engine.loss(packs[0].inputs)]
    weights = {}
    for name, parameter in trained(engine.module):
        held = local_part(name, parameter, engine.settings.zero_stage, 0)
        weights[name] = held.view(getattr(parameter, "ds_shape", parameter.shape)).numpy().copy()
    return losses, weights


def _waits(stage: int, folder: str) -> list[int]:
    """Of a step of two packs and of one of six."""
    engine, packs = _engine(folder, zero_stage=stage, precision="bf16")
    found = []
    for share in (packs[:2], packs * 2):
        engine.step(share, 90.0, 1e-3)
        with _Waits() as waits:
            engine.step(share, 90.0, 1e-3)
        found.append(waits.count)
    return found


class _Kept:
    """A checkpoint in memory."""

    def __init__(self, engine: TrainingEngine, step: int):
        shards = {"weights": engine.weights(), **engine.moments()}
        self.kept = {kind: {s.name: s.values_N.clone() for s in of_kind} for kind, of_kind in shards.items()}
        self.state = {"step": step}

    def values(self, kind: str, name: str, start: int, num: int) -> torch.Tensor:
        return self.kept[kind][name].flatten()[start : start + num]


def _resumed(stage: int, folder: str) -> tuple[float, float]:
    """The loss of the third step with fused AdamW, and the same after a restart behind the second."""
    engine, packs = _engine(folder, zero_stage=stage, fused_adamw=True)
    for _ in range(2):
        engine.step(packs, 90.0, 1e-2)
    kept: Any = _Kept(engine, 2)
    engine.step(packs, 90.0, 1e-2)
    expected = engine.step(packs, 90.0, 1e-2)
    other, _ = _engine(folder, kept, zero_stage=stage, fused_adamw=True)
    other.step(packs, 90.0, 1e-2)
    return expected, other.step(packs, 90.0, 1e-2)


def _variants(stage: int, folder: str) -> dict[str, Any]:
    lora = LoraSettings(rank=2)
    return {
        "plain": _trained(folder, zero_stage=stage),
        "chunked": _trained(folder, 64 * 600, zero_stage=stage),
        "chunked, checkpointing": _trained(folder, 64 * 600, zero_stage=stage, activation_checkpointing=True),
        "norms": _trained(folder, zero_stage=stage, fused_norms=True),
        "fused AdamW": _trained(folder, zero_stage=stage, fused_adamw=True),
        "lora": _trained(folder, zero_stage=stage, lora=lora),
        "lora, chunked": _trained(folder, 64 * 600, zero_stage=stage, lora=lora),
        "waits": _waits(stage, folder),
        "resumed": _resumed(stage, folder),
    }


@pytest.mark.parametrize(
    ("stage", "family"), [(0, "llama"), *(pytest.param(stage, "gemma2", marks=pytest.mark.slow) for stage in (2, 3))]
)
def test_every_kernel_gives_the_same_training(stage: int, family: str, tiny_base: str, tmp_path: Path) -> None:
    """Both have tied embeddings; Gemma's logits have a soft cap."""
    found = in_engine_process(_variants, stage, save_decoder(family, tiny_base, str(tmp_path)))
    two, six = found.pop("waits")
    assert two == six, "the host waits for each step, not for each pack"
    expected_loss, resumed_loss = found.pop("resumed")
    assert resumed_loss == pytest.approx(expected_loss, rel=1e-5), "fused AdamW resumes with its moments and its count"
    for name, (losses, weights) in found.items():
        expected_losses, expected = found["lora" if name.startswith("lora") else "plain"]
        assert losses == pytest.approx(expected_losses, rel=1e-5), name
        assert losses[2] < losses[0]
        assert weights.keys() == expected.keys()
        for key, value in weights.items():
            # AdamW turns the sign of a tiny gradient into a whole step: a few weights may differ by some.
            assert np.abs(value - expected[key]).mean() < 1e-6, (name, key)


def _norms(folder: str) -> list[float]:
    """Of the gradient of a first step without ZeRO, and with its stages 1 and 2."""
    norms = []
    for stage in (0, 1, 2):
        engine, packs = _engine(folder, zero_stage=stage)
        engine.step(packs, 90.0, 1e-3)
        norms.append(engine.gradient_norm)
    return norms


def test_a_training_without_zero_knows_its_gradients_norm_too(tiny_base: str) -> None:
    plain, *sharded = in_engine_process(_norms, tiny_base)
    assert plain > 0
    assert sharded == pytest.approx([plain, plain], rel=1e-4)


@pytest.mark.parametrize(("family", "num_norms"), [("llama", 5), ("qwen3", 9), ("gemma3", 13), ("gpt2", 0)])
def test_fused_norms_give_the_same_hidden_states(family: str, num_norms: int) -> None:
    """GPT-2 has layer norms, which stay."""
    model, ids = decoder(family, 90).eval(), torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert use_fused_norms(model) == num_norms
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="compile_layers needs zero_stage 2 or less"):
        LearnerSettings(compile_layers=True, zero_stage=3)
    plain = LearnerSettings()
    assert (plain.compile_layers, plain.fused_adamw, plain.fused_norms) == (False, None, None)


def _compiled(folder: str) -> dict[str, Any]:
    return {
        "plain": _trained(folder, zero_stage=2),
        "compiled": _trained(folder, zero_stage=2, compile_layers=True),
        "compiled, checkpointing": _trained(folder, zero_stage=2, compile_layers=True, activation_checkpointing=True),
    }


@pytest.mark.slow
def test_compiled_layers_give_the_same_training(tiny_base: str, tmp_path: Path) -> None:
    """Needs a C++ compiler, and a minute for it."""
    found = in_engine_process(_compiled, save_decoder("llama", tiny_base, str(tmp_path)))
    for name in ("compiled", "compiled, checkpointing"):
        assert found[name][0] == pytest.approx(found["plain"][0], rel=1e-4), name
    assert compile_layers(decoder("llama", 90)) == 2
