"""What a stage of a model holds, against arithmetic by hand, and the splits that are refused."""

from typing import Any

import pytest
from support.llama_shapes import LLAMA_13B, LLAMA_405B, SMOLLM2
from transformers import AutoConfig

from actors.generation.planned_engine import PlannedEngine
from actors.generation.planned_split import impossible, largest_stage
from actors.generation.settings import ENDPOINT, EngineSettings
from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape, shape_of


def shape(config: dict[str, Any]) -> ModelShape:
    return shape_of(AutoConfig.for_model("llama", **config))


def test_a_stage_of_405b_has_its_layers_and_one_of_embedding_and_output() -> None:
    """A layer has 16,384 x (2 x 16,384 + 2 x 1,024 + 3 x 53,248 + 2) parameters, the embedding 128,256 x 16,384."""
    whole = shape(LLAMA_405B)
    layer, embedding = 16_384 * (2 * 16_384 + 2 * 1024 + 3 * 53_248 + 2), 128_256 * 16_384
    assert whole.num_parameters == 126 * layer + 2 * embedding + 16_384
    stage = largest_stage(whole, 4)
    assert (stage.layers, stage.num_parameters) == (32, 32 * layer + embedding), "126 are 31 or 32 in each"
    assert largest_stage(whole, 1) is whole


def test_every_gpu_of_a_stage_has_its_part_of_the_stage() -> None:
    model, settings = shape(LLAMA_405B), EngineSettings(tensor_parallel=8, pipeline_parallel=2, memory_share=0.9)
    found = PlannedEngine(settings, ENDPOINT, "bfloat16", 16, 4096, 79 * GIB).memory(model)
    assert found.weights == 2 * largest_stage(model, 2).num_parameters / 8
    assert found.answer == 2 * 63 * 8 * 128 * 4096 * 2 / 8, "keys and values of 63 layers, one head of eight"
    assert found.fits
    small = settings.model_copy(update={"quantization": "fp8"})
    fp8 = PlannedEngine(small, ENDPOINT, "bfloat16", 16, 4096, 79 * GIB).memory(model)
    assert found.weights / 2 < fp8.weights < found.weights / 1.9, "all but embedding and output"


def test_tied_embeddings_are_whole_in_the_largest_stage() -> None:
    whole = shape(SMOLLM2)
    stage = largest_stage(whole, 3)
    assert stage.num_parameters - whole.vocabulary * whole.width == 10 * whole.layer
    assert largest_stage(ModelShape(1001), 2).num_parameters == 501, "of which only the size is known"


@pytest.mark.parametrize(
    ("parts", "stages", "said"),
    [
        (5, 40, ""),
        (5, 41, "engine.pipeline_parallel is 41, and the model has 40 layers: set it to 40 at most"),
        (3, 2, "engine.tensor_parallel is 3, which does not divide the model's 40 attention heads"),
    ],
)
def test_a_split_that_the_model_does_not_have_is_refused(parts: int, stages: int, said: str) -> None:
    settings = EngineSettings(tensor_parallel=parts, pipeline_parallel=stages)
    found = impossible(settings, "engine", shape(LLAMA_13B))
    assert found.startswith(said)
    assert bool(found) == bool(said)
