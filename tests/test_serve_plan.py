"""`python -m serve --plan`: engine, GPUs, weights and KV cache of a replica, and the refusal of what cannot fit."""

from pathlib import Path
from typing import Any

import pytest
from support.llama_shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B
from transformers import AutoConfig

from serve.__main__ import main

GPU = ["num_gpus=1", "memory_gib=79", "engine.dtype=bfloat16", "predictor=null"]


def folder(config: dict[str, Any], path: Path) -> str:
    """A policy of which only the config.json is there."""
    AutoConfig.for_model("llama", **config).save_pretrained(path)
    return str(path)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words, "--plan"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_plan_tells_engine_cards_weights_cache_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = plan(capsys, f"policy={folder(LLAMA_8B, tmp_path / 'small')}", *GPU, "max_replicas=3")
    assert (code, err) == (0, "")
    assert out == (
        "serve: model small, 8,030,261,248 parameters: 1 to 3 replicas x 0.5 CPU, 1 GPU; bfloat16; vLLM where it is "
        "installed and runs the model, which takes 45% of a GPU at most, else transformers; GiB each: weights 15.0, "
        "beside them 1.9, KV cache 18.7: 16 answers of 2,048 tokens at a time, of max_num_seqs 16\n"
    ), "2,048 tokens are the context of a config that names none"


def test_a_model_larger_than_a_card_is_refused_until_it_is_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = f"policy={folder(LLAMA_70B, tmp_path / 'large')}"
    code, _, err = plan(capsys, policy, *GPU)
    assert code == 1
    assert err.startswith("serve: engine: the policy needs 134")
    assert err.endswith("what helps: engine.tensor_parallel: 8 with num_gpus: 8\n")
    code, out, err = plan(capsys, policy, *GPU, "num_gpus=8", "engine.tensor_parallel=8")
    assert (code, err) == (0, "")
    assert (
        "8 GPU; bfloat16; vLLM, which takes 45% of a GPU at most; split over 8 GPUs, GiB in each: weights 16.4" in out
    )


def test_a_model_that_no_node_holds_gets_stages_on_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = f"policy={folder(LLAMA_405B, tmp_path / 'huge')}"
    code, _, err = plan(capsys, policy, *GPU)
    assert code == 1
    help = "what helps: engine.pipeline_parallel: 4 with engine.tensor_parallel: 8 and num_gpus: 32\n"
    assert err.endswith(help), "16 GPUs of one node would have 47 GiB each, and .45 of theirs are 36"
    words = ["num_gpus=32", "engine.tensor_parallel=8", "engine.pipeline_parallel=4"]
    code, out, err = plan(capsys, policy, *GPU, *words)
    assert (code, err) == (0, "")
    assert "32 GPU; bfloat16; vLLM, which takes 45% of a GPU at most; split over 32 GPUs in 4 stages of 8" in out
    assert "GiB in each at most: weights 24.2, " in out
    code, _, err = plan(capsys, policy, *GPU, "engine.memory_share=0.9")
    assert "engine.tensor_parallel: 16 with num_gpus: 16; or engine.pipeline_parallel: 2 with engine.t" in err


def test_without_a_limit_the_longest_answer_is_what_the_memory_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """128 KiB a token; of .45 of 44 GiB, 15.0 are weights and 1.9 beside them, so 2.98 GiB are 24,443 tokens."""
    config = LLAMA_8B | {"max_position_embeddings": 131_072}
    words = [f"policy={folder(config, tmp_path / 'long')}", *GPU, "memory_gib=44", "engine.max_model_len=null"]
    code, out, err = plan(capsys, *words)
    assert (code, err) == (0, "")
    assert ": 1 answers of 24,320 tokens at a time" in out
    code, _, err = plan(capsys, *words, "engine.max_model_len=32768")
    assert code == 1
    assert "one answer of 32,768 tokens has no room for its KV cache of 4 GiB" in err
    assert "engine.max_model_len: 24320" in err


def test_the_predictor_is_planned_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rater = tmp_path / "rater"
    AutoConfig.for_model("llama", **LLAMA_8B, num_labels=5).save_pretrained(rater)
    words = [f"policy={folder(LLAMA_8B, tmp_path / 'small')}", *GPU, f"predictor={rater}"]
    code, out, err = plan(capsys, *words, "scorer.num_gpus=0.4")
    assert (code, err) == (0, "")
    assert "serve: predictor, 7,504" in out
    assert "1 replica x 0.25 CPU, 0.4 GPU; bfloat16; GiB each: weights 14.0, a forward of 2,048 tokens 0.2" in out
    code, _, err = plan(capsys, *words, "scorer.num_gpus=0.1")
    assert code == 1
    assert err.startswith("serve: scorer needs 15.2 GiB (weights 14.0, a forward of 2,048 tokens 0.21, process 1)")
    assert "and has 7.9; what helps: nothing splits this model" in err


def test_a_policy_that_is_not_there_is_an_error_in_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = plan(capsys, f"policy={tmp_path / 'nowhere'}")
    assert (code, out) == (2, "")
    assert err.startswith("serve: no policy at ")
