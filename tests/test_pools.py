"""Pools in a plan: engine, GPUs, weights and KV cache of each actor, and the refusal of what is larger than its GPU."""

from pathlib import Path
from typing import Any

import pytest
from support.llama_shapes import LLAMA_13B, LLAMA_70B
from transformers import AutoConfig

from actors.modeling.model_shape import ModelShape
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from jobs.runner.plan import plan_lines, refuse_what_cannot_fit
from jobs.runner.pools import Pools
from jobs.runner.preset import Preset
from jobs.runner.shapes import Shapes
from jobs.runner.stage import Run, StageError

PRESETS = Path(__file__).parent.parent / "jobs" / "presets"
CARDS = ("annotate.pool.memory_gib", "sampling.pool.memory_gib")
TRAINED = tuple(f"{path}.learner.memory_gib=1000" for path in ("predictor", "policy", "bootstrap"))


def preset_of(config: dict[str, Any], folder: Path, annotators_gib: float, samplers_gib: float, *words: str) -> Preset:
    """`node_8gpu` with a model of which only the config.json is there."""
    folder = folder / str(config["hidden_size"])  # a config that was read once is kept
    AutoConfig.for_model("llama", architectures=["LlamaForCausalLM"], **config).save_pretrained(folder)
    base = [f"base.model={folder}", "base.num_parameters=null", "template=steerlm", f"storage={folder}/runs"]
    cards = [f"{name}={gib}" for name, gib in zip(CARDS, (annotators_gib, samplers_gib), strict=True)]
    return load(Preset, str(PRESETS / "node_8gpu.yaml"), [*base, *TRAINED, *cards, *words])


def line_of(preset: Preset, stage: str) -> str:
    return list(plan_lines(Run(preset), [stage]))[1]


def test_a_plan_of_13b_tells_engine_cards_weights_cache_and_answers(tmp_path: Path) -> None:
    preset = preset_of(LLAMA_13B, tmp_path, 79, 79)
    assert line_of(preset, "bootstrap-1/samples").endswith(
        "8 Ray Data actors x 4 CPU, 1 GPU; bfloat16; vLLM where it is installed and runs the model, which takes 90% of "
        "a GPU at most, else transformers; GiB each: weights 24.2, beside them 1.9, KV cache 45.0: 14 answers of 4,096 "
        "tokens at a time, of max_num_seqs 64"
    ), "4,096 is the model's context; training and sampling alone would ask for 5,120"
    assert "GiB each: weights 23.9, a forward of 32,768 tokens 3.5" in line_of(preset, "annotated")
    refuse_what_cannot_fit(preset)


def test_70b_is_refused_until_it_is_split(tmp_path: Path) -> None:
    with pytest.raises(StageError) as refused:
        refuse_what_cannot_fit(preset_of(LLAMA_70B, tmp_path, 179, 79))
    assert "sampling.engine: the policy needs 134" in str(refused.value)
    remedy = "sampling.engine.tensor_parallel: 2 with sampling.pool.gpus_per_actor: 2"
    assert remedy in str(refused.value)
    words = ["sampling.engine.tensor_parallel=4", "sampling.pool.gpus_per_actor=4", "sampling.pool.num_actors=2"]
    split = preset_of(LLAMA_70B, tmp_path, 179, 79, *words)
    refuse_what_cannot_fit(split)
    line = line_of(split, "report")
    assert "2 Ray Data actors x 4 CPU, 4 GPU" in line
    assert "split over 4 GPUs, GiB in each: weights 32.9" in line


def test_a_predictor_larger_than_its_gpu_is_refused_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^annotate\.pool needs 137.2 GiB .* nothing splits this model over several"):
        refuse_what_cannot_fit(preset_of(LLAMA_70B, tmp_path, 79, 179))
    with pytest.raises(StageError, match=r"annotate\.pool .* what helps: annotate\.pack_tokens below 32768"):
        refuse_what_cannot_fit(preset_of(LLAMA_13B, tmp_path, 27, 79))
    with pytest.raises(StageError, match=r"annotate\.pool .* what helps: annotate\.pool\.dtype: bfloat16"):
        refuse_what_cannot_fit(preset_of(LLAMA_13B, tmp_path, 44, 79, "annotate.pool.dtype=float32"))


def test_steerlm2_reads_answers_on_one_gpu(tmp_path: Path) -> None:
    words = ["bootstrap.method=steerlm2", "sampling.engine.tensor_parallel=4", "sampling.pool.gpus_per_actor=4"]
    preset = preset_of(LLAMA_70B, tmp_path, 179, 79, *words)
    problems = list(Pools(preset, Shapes.of(preset)).problems())
    assert len(problems) == 1
    assert problems[0].startswith("sampling.pool, where SteerLM 2.0 reads answers on one GPU, needs 13")


def test_guided_answers_cannot_be_split(tmp_path: Path) -> None:
    words = ["sampling.guidance=2", "sampling.engine.tensor_parallel=2", "sampling.pool.gpus_per_actor=2"]
    with pytest.raises(
        SettingsError, match=r"which needs the transformers engine, but sampling.engine.tensor_parallel asks"
    ):
        preset_of(LLAMA_13B, tmp_path, 79, 79, *words)


def test_without_the_card_s_memory_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    preset = preset_of(LLAMA_70B, tmp_path, 79, 79, *(f"{name}=null" for name in CARDS))
    refuse_what_cannot_fit(preset)
    assert line_of(preset, "report").endswith(
        "weights 131.4, beside them 2.7, KV cache of one answer of 5,120 tokens 1.6"
    )


def test_a_size_alone_is_enough_to_refuse_weights(tmp_path: Path) -> None:
    preset = load(Preset, str(PRESETS / "paper_43b.yaml"), [f"storage={tmp_path}"])
    sized = Shapes(ModelShape(43 * 10**9), ModelShape(43 * 10**9), None)
    assert list(Pools(preset, sized).problems()) == []
    assert "split over 2 GPUs, GiB in each: weights 40.0" in Pools(preset, sized).sampler()
    small = load(Preset, str(PRESETS / "paper_43b.yaml"), [f"storage={tmp_path}", "sampling.pool.memory_gib=40"])
    [problem] = Pools(small, sized).problems()
    assert "what helps: sampling.engine.tensor_parallel: 3 with sampling.pool.gpus_per_actor: 3" in problem
