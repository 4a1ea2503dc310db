"""What a worker holds falls with the ZeRO stage as theory says."""

from dataclasses import replace

import pytest

from actors.modeling.lora import LoraSettings
from actors.modeling.tiny_llama import SmallModel
from actors.training.memory import Shape, shape_of, too_large, training_memory
from actors.training.settings import LearnerSettings

BILLION = 10**9
SHAPE = Shape(
    BILLION, layers=16, width=2048, feed_forward=8192, vocabulary=128_000, adapted=16 * (8 * 2048 + 3 * (2048 + 8192))
)


def _states(**settings: object) -> float:
    memory = training_memory(SHAPE, LearnerSettings(num_workers=4, packs_per_step=8, **settings))  # type: ignore[arg-type]
    return (memory.weights + memory.gradients + memory.optimizer) / BILLION


def test_model_states_fall_with_the_stage() -> None:
    assert [_states(zero_stage=stage) for stage in range(4)] == [4 + 4 + 8, 4 + 4 + 12 / 4, 4 + 16 / 4, 20 / 4]


def test_offload_moves_to_the_host_what_it_takes_from_the_device() -> None:
    optimizer = training_memory(SHAPE, LearnerSettings(zero_stage=2, offload="optimizer"))
    assert (optimizer.weights, optimizer.gradients, optimizer.optimizer, optimizer.host) == (
        4 * BILLION,
        0,
        0,
        16 * BILLION,
    )
    parameters = training_memory(SHAPE, LearnerSettings(zero_stage=3, offload="parameters"))
    assert parameters.weights == 4 * BILLION / 16
    assert parameters.host == 20 * BILLION


def test_adapters_need_states_for_themselves_alone() -> None:
    lora = training_memory(SHAPE, LearnerSettings(zero_stage=0, lora=LoraSettings(rank=8)))
    assert lora.weights == 4 * BILLION
    assert lora.gradients == 4 * 8 * SHAPE.adapted


def test_activations_need_a_shape_and_shrink_when_they_are_made_again() -> None:
    shape = replace(SHAPE, vocabulary=1000)
    plain, again = (
        training_memory(shape, LearnerSettings(activation_checkpointing=on)).activations for on in (False, True)
    )
    assert plain is not None
    assert again is not None
    assert again < plain / 2
    assert training_memory(Shape(BILLION), LearnerSettings()).activations is None


def test_the_sentence_names_settings_that_are_not_yet_set() -> None:
    learner = LearnerSettings(num_workers=2, zero_stage=2, use_gpu=True, pack_tokens=8192)
    memory = training_memory(SHAPE, learner)
    assert too_large("policy.learner", learner, memory, limit=10**12) is None
    sentence = too_large("policy.learner", learner, memory, limit=8 * 2**30)
    assert sentence is not None
    for setting in (
        "activation_checkpointing: true",
        "zero_stage: 3",
        "offload: optimizer",
        "lora: {}",
        "pack_tokens below 8192",
        "8.0",
    ):
        assert setting in sentence
    small_activations = replace(memory, activations=0.0)
    assert "activation_checkpointing" not in (
        too_large("policy.learner", learner, small_activations, limit=8 * 2**30) or ""
    )


def test_the_shape_is_that_of_the_model_on_disk(tiny_base: str) -> None:
    small = SmallModel(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=600, max_tokens=512
    )
    assert shape_of(None, None, small) == Shape(small.num_parameters, 2, 32, 64, 600, 2 * (8 * 32 + 3 * (32 + 64)))
    found = shape_of(tiny_base, None, SmallModel())
    assert found is not None
    assert (found.layers, found.width, found.feed_forward) == (2, 32, 64)
    assert found.num_parameters == pytest.approx(small.num_parameters, rel=0.2)
    assert shape_of("somebody/some-model", 7, SmallModel()) == Shape(7)
    assert shape_of("somebody/some-model", None, SmallModel()) is None
