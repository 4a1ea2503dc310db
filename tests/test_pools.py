"""Pools in a plan: engine, GPUs, weights and KV cache of each actor, and the refusal of what is larger than its GPU."""

from pathlib import Path
from typing import Any

import pytest
from support.llama_shapes import LLAMA_8B, LLAMA_13B, LLAMA_70B
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

IN_BFLOAT16 = ("sampling.pool.dtype=bfloat16", "annotate.pool.dtype=bfloat16")
TOKENS = ("annotate.pack_tokens=1024", "policy.learner.max_tokens=512", "sampling.max_tokens=512")
PROMOTION = "bootstrap-1/promotion"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """8,030,261,248 parameters, 32 layers, 8 heads of keys of width 128: 128 KiB a token in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    AutoConfig.for_model("llama", **LLAMA_8B, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It reads 512 tokens."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    AutoConfig.for_model("bert", num_labels=2).save_pretrained(folder)
    return str(folder)


def on_cpus(*words: str, gib: float = 64) -> Preset:
    """`demo`, whose pools are one."""
    cards = [f"{name}={gib}" for name in CARDS]
    return load(Preset, str(PRESETS / "demo.yaml"), [*IN_BFLOAT16, *TOKENS, *cards, *words])


def based_on(model: str) -> tuple[str, str]:
    return f"base={{model: '{model}'}}", "predictor.warmup=null"


def raters(*models: str) -> str:
    """Those after the first are language models."""
    given = [
        f"{{kind: hf, model: '{model}', attributes: {{{'humor' if n else 'toxicity'}: 0}}"
        f"{', head: token_logit' if n else ''}}}"
        for n, model in enumerate(models)
    ]
    return f"annotate.raters=[{', '.join(given)}]"


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
    with pytest.raises(StageError, match=r"^annotate\.pool needs 137.2 GiB .* what helps: ") as refused:
        refuse_what_cannot_fit(preset_of(LLAMA_70B, tmp_path, 79, 179))
    assert str(refused.value).endswith("annotate.tensor_parallel: 2 with annotate.pool.gpus_per_actor: 2")
    split = preset_of(LLAMA_70B, tmp_path, 79, 179, "annotate.tensor_parallel=2", "annotate.pool.gpus_per_actor=2")
    refuse_what_cannot_fit(split)
    assert "2 GPU; bfloat16, split over 2 GPUs, GiB in each: weights 65.7, a forward" in line_of(split, "annotated")
    with pytest.raises(StageError, match=r"annotate\.pool .* what helps: annotate\.pack_tokens below 32768"):
        refuse_what_cannot_fit(preset_of(LLAMA_13B, tmp_path, 27, 79))
    with pytest.raises(StageError, match=r"annotate\.pool .* what helps: annotate\.pool\.dtype: bfloat16"):
        refuse_what_cannot_fit(preset_of(LLAMA_13B, tmp_path, 44, 79, "annotate.pool.dtype=float32"))


def test_a_predictor_that_nothing_splits_is_refused_before_anything_starts(bert: str) -> None:
    words = [f"predictor.backbone={bert}", "predictor.warmup=null", "annotate.tensor_parallel=2"]
    split = on_cpus(*words, "annotate.pool.cpus_per_actor=2")
    with pytest.raises(StageError, match=r"^annotate\.tensor_parallel is 2, and transformers has no plan that"):
        refuse_what_cannot_fit(split)
    on_gpus = [*words[:2], "annotate.pool.gpus_per_actor=1", "annotate.pool.memory_gib=1"]
    [problem] = Pools(preset := on_cpus(*on_gpus), Shapes.of(preset)).problems()
    assert problem.endswith("nothing splits this model over several GPUs: take a GPU with more memory")


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
    assert line_of(preset, "bootstrap-1/samples").endswith(
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


@pytest.mark.parametrize("stage", ["annotated", "bootstrap-1/rated"])
def test_the_largest_forward_of_the_predictor_and_all_raters_counts(llama: str, bert: str, stage: str) -> None:
    # Two bytes of 3 x 768 (residuals) and 2 x 3,072 (feed-forward), for a pack of 1,024 tokens: 17.3 MB.
    line = line_of(on_cpus(raters(bert)), stage)
    assert line.endswith(f", a forward of 1,024 tokens in hf: {bert} 0.016")
    # A text of 2,048 tokens is read alone. Two bytes of 3 x 4,096 and 3 x 14,336 (gated): 226 MB.
    line = line_of(on_cpus(raters(bert, llama)), stage)
    assert line.endswith(f", hf: {llama} 15.0, a forward of 2,048 tokens in hf: {llama} 0.21")
    assert line.count("a forward of") == 1
    # The predictor is the larger one: 113 MB for its pack.
    line = line_of(on_cpus(raters(bert), f"predictor.backbone='{llama}'", "predictor.warmup=null"), stage)
    assert line.endswith(f", hf: {bert} 0.2, a forward of 1,024 tokens 0.11")


def test_a_rater_whose_config_has_other_names_has_a_size_alone(tmp_path: Path) -> None:
    AutoConfig.for_model("canine", num_labels=2).save_pretrained(tmp_path)  # reads bytes, and has no vocabulary
    line = line_of(on_cpus(raters(str(tmp_path))), "annotated")
    assert f", hf: {tmp_path} 0.25, a forward of 1,024 tokens 0.0027" in line  # 132,084,482 parameters; the predictor's
    assert line.endswith(f", a forward in hf: {tmp_path} unknown")


@pytest.mark.parametrize("stage", ["report", PROMOTION, "compare/zero_shot/report"])
def test_stages_that_ask_and_rate_count_the_models_of_both(llama: str, bert: str, stage: str) -> None:
    words = (*based_on(llama), raters(bert))
    rated = f"hf: {bert} 0.2, a forward of 1,024 tokens 0.11"
    answers = "32 answers of 1,024 tokens at a time, of max_num_seqs 32"
    # The predictor is the model without its output layer of 128,256 x 4,096.
    line = line_of(on_cpus(*words, gib=40), stage)
    assert line.endswith(
        f"transformers; GiB each: weights 15.0, beside them 0.78, predictor 14.0, {rated}, KV cache 10: {answers}; "
        "the same actors rate"
    ), "40 less 15.0, 0.78, 14.0, 0.2 and 0.11"
    first, then = line_of(on_cpus(*words, "annotate.pool.num_actors=3", gib=40), stage).split("; then ")
    assert first.endswith(f"GiB each: weights 15.0, beside them 0.78, KV cache 20.0: {answers}"), "half of the memory"
    assert then.startswith("3 Ray Data actors")
    assert then.endswith(f"weights 14.0, {rated}")


def test_one_pool_that_cannot_hold_the_models_of_both_is_refused(llama: str) -> None:
    def problems(*words: str) -> list[str]:
        preset = on_cpus(*based_on(llama), *words, gib=28)
        return list(Pools(preset, Shapes.of(preset)).problems())

    [problem] = problems()
    assert problem.startswith(
        "sampling.engine: the policy needs 29.8 GiB (weights 15.0 and 0.78 GiB beside them, predictor 14.0, a forward "
        "of 1,024 tokens 0.11), and 28.0 of the machine's memory are for it"
    )
    assert problem.endswith("what helps: annotate.pool.num_actors other than 2, so that others rate")
    assert problems("annotate.pool.num_actors=3") == [], "each alone fits"


def test_only_those_stages_name_both(bert: str) -> None:
    for stage in ("bootstrap-1/samples", "answers", "ablation/0/sources/report"):
        line = line_of(on_cpus(raters(bert)), stage)
        assert "rate" not in line, "arms in the synthetic world are measured by its truth"
    assert "the same actors rate" in line_of(on_cpus(raters(bert)), "ablation/0/bootstrap-1/promotion")
    assert line_of(on_cpus(), "ablation/report").endswith("the driver alone")


def test_lines_say_how_many_guided_answers_run_at_a_time(llama: str) -> None:
    """One takes two rows: of max_num_seqs, or of the cache where that is the bound."""

    def answers(stage: str, *words: str, gib: float = 64) -> list[str]:
        line = line_of(on_cpus(*based_on(llama), *words, gib=gib), stage)
        return [part.partition(": ")[2].partition(" of")[0] for part in line.split("KV cache")[1:]]

    stages = ("bootstrap-1/samples", PROMOTION, "report")
    assert [answers(stage) for stage in stages] == [["32 answers"]] * 3
    assert [answers(stage, "sampling.guidance=1.5") for stage in stages] == [["16 guided answers"]] * 3
    assert [answers(stage, "sampling.guidance=1") for stage in stages] == [["32 answers"]] * 3
    table = "evaluate.guidance=[1, 2]"
    assert [answers(stage, table) for stage in stages] == [["32 answers"]] * 2 + [["32 answers", "16 guided answers"]]
    assert answers("report", "evaluate.guidance=[1]") == ["32 answers"]
    both = answers("report", "sampling.guidance=2", "evaluate.guidance=[2, 3]")
    assert both == ["16 guided answers"], "the same engine writes them"
    # 18 GiB less 15.0 and 0.78 is room for 14 rows of 1,280 cells, each 160 MiB.
    alone = ("annotate.pool.num_actors=3",)
    assert answers("report", *alone, gib=18) == ["14 answers"]
    assert answers("report", *alone, "sampling.guidance=2", gib=18) == ["7 guided answers"]


def test_the_report_s_guided_answers_need_room_for_two_rows(llama: str) -> None:
    preset = on_cpus(*based_on(llama), "annotate.pool.num_actors=3", "evaluate.guidance=[1, 2]", gib=16)
    [problem] = Pools(preset, Shapes.of(preset)).problems()
    assert "so one guided answer of 1,024 tokens has no room for its KV cache of 0.31 GiB" in problem
    assert "what helps: leave evaluate.guidance out; or sampling.engine.max_model_len: 768" in problem
