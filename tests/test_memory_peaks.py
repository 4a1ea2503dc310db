"""The plan's bytes of a worker against its measured peak: real trainings under Ray Train, one worker process each."""

from pathlib import Path
from typing import Any

import pytest
from support.real_model import NOT_INSTALLED, NUM_PARAMETERS

from actors.modeling.model_memory import GIB
from actors.modeling.settings import LoraSettings
from actors.training.memory import training_memory
from actors.training.settings import LearnerSettings
from tests.support.measured_training import measured_peak, model_folder, shape_at

pytestmark = [pytest.mark.slow, pytest.mark.ray]

WITHIN = 0.15
NEVER: dict[str, Any] = {"checkpoint_every_s": 0}
"""Copies for a checkpoint are there while it uploads: whether that meets the peak is the storage's speed."""
LLAMA = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1408,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}
WIDE = LLAMA | {"num_hidden_layers": 3, "vocab_size": 65_536}
QWEN = LLAMA | {"head_dim": 64, "num_hidden_layers": 6, "tie_word_embeddings": False, "vocab_size": 32_768}
GEMMA = LLAMA | {"num_hidden_layers": 6, "head_dim": 64, "vocab_size": 32_768}

CASES = {
    "full": ("llama", LLAMA, {"zero_stage": 0, "precision": "fp32", **NEVER}),
    "adapters": ("llama", LLAMA, {"zero_stage": 0, "precision": "fp32", "lora": LoraSettings()}),
    "logits": ("llama", WIDE, {"zero_stage": 2, "precision": "fp32", **NEVER}),
    "sharded": ("llama", WIDE, {"zero_stage": 3, "precision": "fp32", "pack_tokens": 512, **NEVER}),
    "bf16": ("qwen3", QWEN, {"zero_stage": 1, "precision": "bf16", **NEVER}),
    "checkpointing": (
        "llama",
        LLAMA,
        {"zero_stage": 0, "precision": "fp32", "pack_tokens": 2048, "activation_checkpointing": True, **NEVER},
    ),
    "gemma": ("gemma3_text", GEMMA, {"zero_stage": 2, "precision": "fp32", **NEVER}),
    "predictor": ("qwen3", QWEN, {"zero_stage": 2, "precision": "fp32", **NEVER}),
}
"""Architecture, its shape, and settings beside those that all have."""


def _require_near(name: str, base: str, learner: LearnerSettings, folder: Path, predictor: bool = False) -> None:
    planned = training_memory(shape_at(base, predictor), learner, has_logits=not predictor)
    folder.mkdir()
    template = "chat" if name.startswith("SmolLM2") else "steerlm"
    measured = measured_peak(base, learner, folder, predictor, template)  # type: ignore[arg-type]
    parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in planned.parts.items())
    ratio = planned.total / measured
    print(
        f"\n{name}: planned {planned.total / GIB:.2f} GiB {planned.moment} ({parts}), measured {measured / GIB:.2f}, "
        f"ratio {ratio:.3f}"
    )
    assert abs(ratio - 1) <= WITHIN, f"{name}: {planned.total / GIB:.2f} planned, {measured / GIB:.2f} measured"


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_near_the_measured_peak(name: str, ray_cluster: object, tiny_base: str, tmp_path: Path) -> None:
    kind, entries, settings = CASES[name]
    base = model_folder(tiny_base, tmp_path / "base", kind, **entries)
    settings = {"packs_per_step": 1, "pack_tokens": 1024, "max_tokens": 512, "learning_rate": 1e-5, **settings}
    learner = LearnerSettings(**settings)  # type: ignore[arg-type]
    _require_near(name, base, learner, tmp_path / "run", name == "predictor")


@NOT_INSTALLED
@pytest.mark.parametrize("lora", [None, LoraSettings()], ids=["full", "adapters"])
def test_a_real_model_of_135_million_parameters(
    lora: LoraSettings | None, ray_cluster: object, smollm2: str, tmp_path: Path
) -> None:
    learner = LearnerSettings(
        zero_stage=2, precision="fp32", pack_tokens=512, max_tokens=512, packs_per_step=1, lora=lora, **NEVER
    )
    assert shape_at(smollm2, predictor=False).num_parameters == NUM_PARAMETERS
    _require_near(f"SmolLM2, {'LoRA' if lora else 'full'}", smollm2, learner, tmp_path / "run")
