"""What a process that only reads holds, against arithmetic by hand, and what helps where that is too much."""

from dataclasses import replace

import pytest
from support.llama_shapes import LLAMA_8B
from transformers import AutoConfig

from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape, shape_of
from actors.scoring.planned_forward import PlannedForward

SIZE = 8_030_261_248
READER = PlannedForward("reader", "bfloat16", "pool.dtype", 32_768, "pack_tokens", 1, 44 * GIB)


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape_of(AutoConfig.for_model("llama", **LLAMA_8B))


def test_weights_and_a_forward_are_named(llama: ModelShape) -> None:
    assert READER.line(llama) == "GiB each: weights 15.0, a forward of 32,768 tokens 3.4"
    assert READER.line(ModelShape(SIZE)) == "GiB each: weights 15.0", "a size alone tells no more"
    assert replace(READER, dtype="float32").line(ModelShape(SIZE)) == "GiB each: weights 29.9"
    assert replace(READER, dtype="auto", gpus=0).line(ModelShape(SIZE)) == "GiB each: weights 29.9"


def test_what_helps_is_what_alone_makes_it_fit(llama: ModelShape) -> None:
    assert READER.problem(llama) == ""
    assert replace(READER, gpus=0.5).problem(llama) == "", "22 GiB"
    assert replace(READER, gpus=0.4).problem(llama).endswith("what helps: pack_tokens below 32768")
    wide = replace(READER, dtype="float32", device_bytes=30 * GIB)
    assert wide.problem(llama).endswith("and has 30.0; what helps: pool.dtype: bfloat16")
    assert replace(READER, device_bytes=10 * GIB).problem(llama).endswith("take a GPU with more memory")
    assert replace(READER, device_bytes=None).problem(llama) == "", "not known here"


def test_models_beside_it_take_their_part(llama: ModelShape) -> None:
    two = replace(READER, others={"skywork": SIZE, "remote": None})
    assert two.line(llama) == "GiB each: weights 15.0, skywork 15.0, a forward of 32,768 tokens 3.4, remote unknown"
    assert two.line_without() == "memory unknown, but skywork 15.0 GiB, remote unknown"
    assert two.problem(llama) == ""
    assert "GiB (weights 15.0, skywork 15.0, process " in replace(two, device_bytes=30 * GIB).problem(llama)
