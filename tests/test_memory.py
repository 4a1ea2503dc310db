"""What a worker holds falls with the ZeRO stage as theory says; what does not fit is a sentence."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig

from actors.kernels.cross_entropy import CHUNK_LOGITS
from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape, shape_of
from actors.modeling.settings import LoraSettings
from actors.training.memory import too_large, trained_parameters, training_memory
from actors.training.settings import BUCKET_ELEMENTS, LIVE_ELEMENTS, LearnerSettings, deepspeed_config
from tests.support.llama_shapes import LLAMA_8B

BILLION = 10**9
SHAPE = ModelShape(
    BILLION,
    layers=16,
    width=2048,
    feed_forward=8192,
    vocabulary=128_000,
    largest=128_000 * 2048,
    cast=BILLION,
    linears=tuple((f"layers.{i}.proj", 8 * 2048 + 3 * (2048 + 8192)) for i in range(16)),
)


def _parts(**settings: Any) -> dict[str, float]:
    """Of states alone: a pack of two tokens keeps next to nothing."""
    sizes = {"pack_tokens": 2, "max_tokens": 2, "checkpoint_every_s": 0, "packs_per_step": 8}
    learner = LearnerSettings(**{"num_workers": 4, "precision": "fp32", "use_gpu": True, **sizes, **settings})
    return dict(training_memory(SHAPE, learner).parts)


def test_model_states_fall_with_the_stage() -> None:
    """Weights, gradients and two moments in fp32; stages 1 and 2 step a copy of their share."""
    states = [sum(_parts(zero_stage=s).get(k, 0) for k in ("weights", "gradients", "optimizer")) for s in range(4)]
    assert [state / BILLION for state in states] == [4 + 4 + 8, 4 + 4 + 12 / 4, 4 + 16 / 4, 16 / 4]


def test_deepspeed_s_buffers_have_the_sizes_that_its_configuration_sets() -> None:
    for stage in (1, 2, 3):
        zero = deepspeed_config(LearnerSettings(zero_stage=stage, precision="bf16"))["zero_optimization"]
        assert zero["reduce_bucket_size"] == BUCKET_ELEMENTS
    assert zero["stage3_max_live_parameters"] == LIVE_ELEMENTS
    assert _parts(zero_stage=3)["buckets"] == 4 * BUCKET_ELEMENTS
    assert _parts(zero_stage=3)["gathered weights"] == 4 * BILLION


def test_offload_moves_to_the_host_what_it_takes_from_the_device() -> None:
    settings: dict[str, Any] = {"use_gpu": True, "pack_tokens": 2, "max_tokens": 2, "checkpoint_every_s": 0}
    optimizer = training_memory(SHAPE, LearnerSettings(zero_stage=2, offload="optimizer", **settings))
    assert not optimizer.parts.keys() & {"optimizer", "the step's temporaries"}
    # Gradients, moments, the copy that is stepped, and a pinned buffer of its size.
    assert optimizer.host == 20 * BILLION
    parameters = training_memory(SHAPE, LearnerSettings(zero_stage=3, offload="parameters", **settings))
    assert "weights" not in parameters.parts
    assert parameters.host == 20 * BILLION


def test_adapters_need_states_for_themselves_alone() -> None:
    learner = LearnerSettings(zero_stage=0, lora=LoraSettings(rank=8))
    assert trained_parameters(SHAPE, learner) == 8 * sum(size for _, size in SHAPE.linears)
    parts = _parts(zero_stage=0, num_workers=1, lora=LoraSettings(rank=8))
    assert parts["weights"] == 4 * BILLION
    narrow = LearnerSettings(lora=LoraSettings(rank=8, target_modules=("layers.3.proj",)))
    assert trained_parameters(SHAPE, narrow) == 8 * SHAPE.linears[3][1]


def test_checkpoints_are_copies_beside_the_training() -> None:
    sizes: dict[str, Any] = {"pack_tokens": 2, "max_tokens": 2, "zero_stage": 0}
    with_copies = training_memory(SHAPE, LearnerSettings(checkpoint_every_s=600, **sizes))
    without = training_memory(SHAPE, LearnerSettings(checkpoint_every_s=0, **sizes))
    assert with_copies.total - without.total == 12 * BILLION
    on_gpu = training_memory(SHAPE, LearnerSettings(checkpoint_every_s=600, use_gpu=True, **sizes))
    assert on_gpu.host == 12 * BILLION


def test_bf16_copies_and_logits_are_there_at_the_loss() -> None:
    settings: dict[str, Any] = {"pack_tokens": 8192, "max_tokens": 8192, "use_gpu": True, "packs_per_step": 2}
    memory = training_memory(SHAPE, LearnerSettings(zero_stage=2, **settings))
    assert memory.moment == "at the loss"
    assert memory.parts["bf16 copies of weights"] == 2 * BILLION
    # More logits than these never exist at a time.
    assert memory.parts["logits"] == 3 * 4 * 128_000 * (CHUNK_LOGITS // 128_000)
    assert "logits" not in training_memory(SHAPE, LearnerSettings(zero_stage=2, **settings), has_logits=False).parts
    assert not training_memory(ModelShape(BILLION), LearnerSettings()).knows_activations


def test_the_sentence_names_settings_that_are_not_yet_set() -> None:
    learner = LearnerSettings(num_workers=2, zero_stage=2, use_gpu=True, pack_tokens=8192)
    memory = training_memory(SHAPE, learner)
    assert too_large("policy.learner", learner, memory, limit=10**12) is None
    sentence = too_large("policy.learner", learner, memory, limit=8 * GIB)
    assert sentence is not None
    for setting in (
        "activation_checkpointing: true",
        "zero_stage: 3",
        "offload: optimizer",
        "lora: {}",
        "pack_tokens below 8192",
        "fit: auto",
        "8.0",
    ):
        assert setting in sentence
    small_activations = replace(memory, parts=dict(memory.parts) | {"activations": 0.0})
    assert "activation_checkpointing" not in too_large("x", learner, small_activations, limit=8 * GIB)  # type: ignore[operator]


def test_llama_8b_on_a_40_gb_card_is_refused_with_what_helps() -> None:
    """Sixteen workers, ZeRO-3, packs of 8,192 tokens: activations and logits alone are more than the card."""
    shape = shape_of(AutoConfig.for_model("llama", **LLAMA_8B))
    learner = LearnerSettings(
        num_workers=16, use_gpu=True, zero_stage=3, pack_tokens=8192, max_tokens=4096, packs_per_step=128
    )
    memory = training_memory(shape, learner)
    assert memory.parts["activations"] / GIB == pytest.approx(32 * 8192 * 260_096 / GIB, rel=0.1)
    sentence = too_large("policy.learner", learner, memory, 40 * GIB)
    assert sentence is not None
    assert "activations" in sentence
    assert "activation_checkpointing: true" in sentence
    assert "zero_stage: 3" not in sentence
