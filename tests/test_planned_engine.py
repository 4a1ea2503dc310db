"""What an engine holds and how many answers fit, against arithmetic by hand; what cannot fit names what helps."""

import re
from dataclasses import replace
from typing import Any

import pytest
from support.llama_shapes import LLAMA_8B, LLAMA_13B, LLAMA_70B, PAPER_43B
from transformers import AutoConfig

from actors.generation.planned_engine import PlannedEngine
from actors.generation.settings import ENDPOINT, EngineSettings, sampling_place
from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape, shape_of


def shape(config: dict[str, Any]) -> ModelShape:
    return shape_of(AutoConfig.for_model("llama", **config))


def planned(
    gpus: float = 1, card: float | None = 79, tokens: int = 4096, dtype: str = "bfloat16", **engine: Any
) -> PlannedEngine:
    settings = EngineSettings(**engine)
    return PlannedEngine(settings, sampling_place(gpus), dtype, gpus, tokens, None if card is None else card * GIB)


def test_weights_and_cache_of_13b_on_one_card_by_hand() -> None:
    """Keys and values: 2 x 40 layers x 5,120 x 2 bytes = 800 KiB a token, 3.125 GiB an answer of 4,096."""
    found = planned(kind="vllm", max_num_seqs=64).memory(shape(LLAMA_13B))
    assert found.weights == 2 * 13_015_864_320
    assert found.answer == 3.125 * GIB
    assert found.limit == 0.9 * 79 * GIB
    assert found.cache == found.limit - found.weights - found.others
    assert 1 * GIB < found.others < 3 * GIB
    assert found.num_answers == int(found.cache / found.answer) == 14
    assert planned(kind="vllm", max_num_seqs=4).memory(shape(LLAMA_13B)).num_answers == 4


def test_a_split_model_has_its_share_of_weights_and_heads_on_each_card() -> None:
    whole, split = planned(card=200).memory(shape(LLAMA_70B)), planned(4, tensor_parallel=4).memory(shape(LLAMA_70B))
    assert split.weights == whole.weights / 4
    assert split.answer == whole.answer / 4
    assert split.fits
    over = planned(16, tensor_parallel=16).memory(shape(LLAMA_70B))
    assert over.answer == whole.answer / 8, "eight heads of keys: two cards hold the same one"


@pytest.mark.parametrize(("config", "weights"), [(PAPER_43B, "80.2"), (LLAMA_70B, "131.4")], ids=["43b", "70b"])
def test_what_is_larger_than_a_card_is_refused_with_the_split_that_fits(config: dict[str, Any], weights: str) -> None:
    model = shape(config)
    said = planned(kind="vllm").problem(model)
    assert re.match(rf"sampling\.engine: the policy needs [\d.]+ GiB \(weights {weights} and 2\.\d GiB beside", said)
    assert "71.1 of each GPU's memory are for it" in said
    assert "what helps: sampling.engine.tensor_parallel: 2 with sampling.pool.gpus_per_actor: 2" in said
    assert planned(2, kind="vllm", tensor_parallel=2).problem(model) == ""
    assert planned(kind="vllm", card=None).problem(model) == "", "the card is not known here"


def test_each_remedy_alone_makes_it_fit() -> None:
    model = shape(LLAMA_13B)
    said = planned(card=44, dtype="float32", tokens=4096, memory_share=0.5).problem(model)
    assert "sampling.pool.dtype: bfloat16" not in said, "half of the card still has no room"
    assert "sampling.engine.memory_share: 0.9" not in said
    assert "sampling.engine.tensor_parallel: 4 with" in said
    tight = planned(card=31, kind="vllm")
    said = tight.problem(model)
    assert "one answer of 4,096 tokens has no room" in said
    length = int(said.partition("sampling.engine.max_model_len: ")[2].partition(";")[0])
    assert replace(tight, tokens=length).problem(model) == ""
    assert "sampling.engine.quantization: fp8" in said
    assert replace(tight, settings=EngineSettings(kind="vllm", quantization="fp8")).problem(model) == ""
    served = PlannedEngine(EngineSettings(kind="vllm"), ENDPOINT, "bfloat16", 1, 4096, 48 * GIB)
    assert "engine.memory_share: 0.9" in served.problem(model)


def test_transformers_cannot_be_split_and_gets_no_such_advice() -> None:
    said = planned(kind="transformers").problem(shape(LLAMA_70B))
    assert "tensor_parallel" not in said
    assert "quantization" not in said
    assert said.endswith("take a smaller model, or a device with more memory")


def test_a_split_must_divide_the_heads() -> None:
    said = planned(3, tensor_parallel=3).problem(shape(LLAMA_70B))
    assert said == (
        "sampling.engine.tensor_parallel is 3, which does not divide the model's 64 attention heads, 8 of keys and "
        "values; set it to one of 1, 2, 4, 8, 16"
    )
    assert planned(5, tensor_parallel=5).problem(shape(LLAMA_13B)) == "", "40 heads"


def test_a_fixed_cache_must_fit_beside_the_weights() -> None:
    model = shape(LLAMA_8B)
    assert planned(card=44, kv_cache_gib=16, kind="vllm").memory(model).cache == 16 * GIB
    assert "leave sampling.engine.kv_cache_gib out" in planned(card=44, kv_cache_gib=40, kind="vllm").problem(model)


def test_a_larger_forward_leaves_less_room() -> None:
    model = shape(LLAMA_8B)
    plain, large = planned().memory(model), planned(vllm={"max_num_batched_tokens": 32_768}).memory(model)
    assert large.others > plain.others + 2 * GIB
    assert planned(vllm={"max_num_batched_tokens": "many"}).memory(model) == plain, "vLLM's to refuse"


def test_smaller_dtypes_of_weights_and_cache_count() -> None:
    model = shape(LLAMA_8B)
    plain, small = planned().memory(model), planned(quantization="fp8", kv_cache_dtype="fp8").memory(model)
    assert small.answer == plain.answer / 2
    vocabulary = 2 * 128_256 * 4096
    assert small.weights == vocabulary * 2 + (model.num_parameters - vocabulary - 65 * 4096) + 65 * 4096 * 2
    assert planned(card=10, quantization="awq").problem(model) == "", "how small that is, is not known"
    assert "weights at most" in planned(quantization="awq").line(model)


def test_on_a_cpu_a_process_has_its_share_of_the_machine() -> None:
    model = shape(LLAMA_8B)
    found = planned(0, card=64, dtype="float32").memory(model)
    assert found.limit == 64 * GIB
    assert found.weights == 4 * 8_030_261_248
    assert planned(0, card=24, dtype="float32").problem(model).endswith("sampling.pool.dtype: bfloat16")
    split = planned(0, card=64, dtype="float32", tensor_parallel=2)
    assert "split over 2 processes, GiB in each: weights 15.0" in split.line(model)


def test_the_line_names_engine_cards_weights_cache_and_answers() -> None:
    line = planned(4, kind="vllm", tensor_parallel=4, max_num_seqs=64).line(shape(LLAMA_70B))
    assert line == (
        "vLLM, which takes 90% of a GPU at most; split over 4 GPUs, GiB in each: weights 32.9, beside them 2.7, KV "
        "cache 35.5: 64 answers of 4,096 tokens at a time, of max_num_seqs 64"
    )
    unknown = planned(card=None).line(shape(LLAMA_13B))
    assert unknown.endswith("GiB each: weights 24.2, beside them 1.9, KV cache of one answer of 4,096 tokens 3.1")


def test_a_guided_answer_takes_two_rows() -> None:
    """A row of 13 B: 800 KiB a cell, 4,096 + 256 cells, 3.32 GiB; the cache is 70 % of what is free."""
    model = shape(LLAMA_13B)
    plain = planned(kind="transformers", max_num_seqs=64)
    guided = replace(plain, guided_by="sampling.guidance")
    row = 4352 * 800 * 1024
    assert (plain.memory(model).answer, guided.memory(model).answer) == (row, 2 * row)
    assert (
        plain.memory(model).cache == guided.memory(model).cache == pytest.approx(0.7 * (78 * GIB - 2 * 13_015_864_320))
    )
    assert (plain.memory(model).num_answers, guided.memory(model).num_answers) == (11, 5), "the cache is the bound"
    few = replace(guided, settings=EngineSettings(kind="transformers", max_num_seqs=7))
    assert few.memory(model).num_answers == 3, "max_num_seqs is the bound, and a seventh row stays free"
    assert few.line(model).endswith(
        "KV cache 37.6: 3 guided answers of 4,096 tokens at a time, each 2 rows of max_num_seqs 7"
    )
    assert replace(few, device_bytes=None).line(model).endswith("KV cache of one guided answer of 4,096 tokens 6.6")


def test_guidance_that_has_no_room_for_its_second_row_is_refused() -> None:
    model, tight = shape(LLAMA_13B), planned(card=32.5, kind="transformers")
    assert tight.problem(model) == ""
    said = replace(tight, guided_by="evaluate.guidance").problem(model)
    assert "so one guided answer of 4,096 tokens has no room for its KV cache of 6.6 GiB" in said
    assert "what helps: leave evaluate.guidance out; or sampling.engine.max_model_len: 3072" in said


def test_a_prefix_cache_takes_of_what_the_kv_cache_leaves() -> None:
    model = shape(LLAMA_13B)

    def with_prefixes(tokens: int, **more: Any) -> PlannedEngine:
        return planned(prefix_cache_tokens=tokens, **more)

    none, small, large = (with_prefixes(n).memory(model) for n in (0, 4096, 32_768))
    free = none.limit / 0.9 - none.weights - GIB if none.limit else 0
    assert small.held == {"prefix cache of 4,096 tokens": 3.125 * GIB}
    assert small.cache == pytest.approx(0.7 * free), "it lies in the 30 % that the KV cache leaves"
    assert large.cache == pytest.approx(free - 25 * GIB), "it does not fit there"
    assert "beside them 1, prefix cache of 4,096 tokens 3.1, KV cache 37.6: 11 answers" in with_prefixes(4096).line(
        model
    )
    said = with_prefixes(80_000).problem(model)
    assert "GiB (weights 24.2 and 1 GiB beside them, prefix cache of 80,000 tokens 61.0), and 79.0 of each" in said
    assert "sampling.engine.prefix_cache_tokens: 0" in said
    both = with_prefixes(8192, card=44, kv_cache_gib=16)
    assert "prefix cache of 8,192 tokens 6.2, kv_cache_gib 16.0), and 44.0" in both.problem(model)
    assert replace(both, device_bytes=48 * GIB).memory(model).cache == 16 * GIB
    host = with_prefixes(32_768, gpus=0, card=64).memory(model)
    assert host.cache == pytest.approx(64 * GIB - host.weights - host.others - 25 * GIB), "less than half of the memory"


def test_what_a_process_holds_for_other_work_leaves_less_room() -> None:
    model, alone = shape(LLAMA_13B), planned(0, card=64)
    both = replace(alone, beside={"predictor": 24 * GIB}, apart="another pool")
    assert alone.memory(model).cache == 32 * GIB
    assert both.memory(model).cache == pytest.approx(40 * GIB - both.memory(model).weights - both.memory(model).others)
    assert "beside them 0.78, predictor 24.0, KV cache 15.0: 4 answers" in both.line(model)
    said = replace(both, device_bytes=48 * GIB).problem(model)
    assert "GiB (weights 24.2 and 0.78 GiB beside them, predictor 24.0), and 48.0 of the machine's memory" in said
    assert said.endswith("what helps: another pool")
