"""What a process that only reads holds, against arithmetic by hand, and what helps where that is too much."""

from dataclasses import replace

import pytest
from support.llama_shapes import LLAMA_8B
from transformers import AutoConfig

from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape, shape_of
from actors.scoring.planned_forward import PlannedForward, RaterShape

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
    two = replace(READER, others={"skywork": RaterShape(llama, 2048), "remote": None})
    assert two.line(llama) == "GiB each: weights 15.0, skywork 15.0, a forward of 32,768 tokens 3.4, remote unknown"
    assert two.line(None) == (
        "memory unknown, but skywork 15.0, a forward of 32,768 tokens in skywork 3.4 GiB, remote unknown"
    )
    assert two.problem(llama) == ""
    said = replace(two, device_bytes=30 * GIB).problem(llama)
    assert said.startswith(
        "reader needs 34.3 GiB (weights 15.0, skywork 15.0, a forward of 32,768 tokens 3.4, process 1)"
    )


def test_only_the_largest_forward_counts(llama: ModelShape) -> None:
    """Two bytes of 3 x 4,096 (residuals) and 3 x 14,336 (gated feed-forward), for each token: 108 KiB."""
    small = replace(llama, width=768, feed_forward=3072, num_parameters=10**8)
    two = replace(READER, tokens=1024, others={"large": RaterShape(llama, 8192), "small": RaterShape(small, 8192)})
    parts = two.parts(small, "predictor")
    assert list(parts) == ["predictor", "large", "small", "a forward of 8,192 tokens in large"]
    assert parts["a forward of 8,192 tokens in large"] == 8192 * 108 * 1024, "a text of 8,192 tokens is read alone"
    assert replace(two, tokens=16_384).parts(small)["a forward of 16,384 tokens in large"] == 16_384 * 108 * 1024
    own = replace(two, others={"small": RaterShape(small, 1024)}).parts(llama)
    assert own["a forward of 1,024 tokens"] == 1024 * 108 * 1024
    assert len(own) == 3


def test_a_rater_of_which_the_size_alone_is_known_has_no_forward(llama: ModelShape) -> None:
    line = replace(READER, others={"canine": RaterShape(ModelShape(SIZE), 512)}).line(llama)
    assert line.endswith("canine 15.0, a forward of 32,768 tokens 3.4, a forward in canine unknown")


def test_a_rater_s_long_text_that_does_not_fit_has_a_remedy_of_its_own(llama: ModelShape) -> None:
    """Weights and process: 30.9 GiB; a text of 65,536 tokens takes 6.8, a pack of 1,024 tokens 0.1."""
    two = replace(READER, tokens=1024, device_bytes=32 * GIB, others={"long": RaterShape(llama, 65_536)})
    assert two.problem(llama).endswith("and has 32.0; what helps: max_tokens of long below 65536")
    assert replace(two, others={"long": RaterShape(llama, 1024)}).problem(llama) == ""


def test_parts_share_the_layers_and_each_has_the_embeddings(llama: ModelShape) -> None:
    split = replace(READER, num_parts=2, gpus=2, split_setting="annotate.tensor_parallel")
    embeddings = llama.vocabulary * llama.width
    weights = (embeddings + (llama.num_parameters - embeddings) / 2) * 2 / GIB
    assert split.line(llama).startswith(f"split over 2 GPUs, GiB in each: weights {weights:.2g}, a forward of")
    three = replace(split, num_parts=3, gpus=3)
    assert three.problem(llama) == (
        "annotate.tensor_parallel is 3, which does not divide the model's 32 attention heads, 8 of keys and values, "
        "and the 14336 features of its feed-forward; set it to one of 1, 2, 4, 8"
    )


def test_a_split_is_proposed_where_the_gpus_of_a_node_hold_it(llama: ModelShape) -> None:
    large = replace(READER, what="annotate.pool", split_setting="annotate.tensor_parallel", device_bytes=11 * GIB)
    said = large.problem(llama)
    assert said.endswith("what helps: annotate.tensor_parallel: 4 with annotate.pool.gpus_per_actor: 4")
    assert replace(large, num_parts=4, gpus=4).problem(llama) == ""
    assert replace(large, num_parts=2, gpus=2).problem(llama) != ""
    none = replace(large, device_bytes=3 * GIB).problem(llama)
    assert none.endswith("the GPUs of one node do not hold it (up to 16 were tried): take GPUs with more memory")


def test_on_a_cpu_the_parts_share_one_memory(llama: ModelShape) -> None:
    here = replace(READER, gpus=0, split_setting="annotate.tensor_parallel", device_bytes=21 * GIB)
    assert here.problem(llama) == ""
    assert "split over 2 processes" in replace(here, num_parts=2).line(llama)
    assert replace(here, num_parts=2).problem(llama) != "", "the embeddings are there twice, and so is a process"
    assert "tensor_parallel" not in replace(here, device_bytes=8 * GIB).problem(llama)
