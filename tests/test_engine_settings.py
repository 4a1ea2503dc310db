"""`sampling.engine`, and `engine` of the endpoint: which engine `auto` takes, and what is refused by name."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from support.engines import NO_VLLM

from actors.generation.choice import chosen
from actors.generation.settings import (
    ENDPOINT,
    OWN_ARGUMENTS,
    PARALLEL_ARGUMENTS,
    TRANSFORMERS_ONLY,
    VLLM_ONLY,
    EngineSettings,
    sampling_place,
)
from actors.generation.vllm_installed import require_installed
from actors.kernels.machine_memory import ALONE
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.errors import UserError
from data.record import Record
from jobs.pipelines.annotation import annotator
from jobs.pipelines.sample import sampler, sampling_settings
from jobs.runner.needs import needs
from jobs.runner.preset import Preset
from jobs.runner.settings import SamplingSettings
from jobs.runner.stage import Run, _plain
from serve.deploy import _policy
from serve.locate import Located
from serve.settings import ServedEngineSettings, ServeSettings

ROOT = Path(__file__).parent.parent
DEMO, CONFIG = str(ROOT / "jobs" / "presets" / "demo.yaml"), str(ROOT / "serve" / "config.yaml")
PLACE = sampling_place(1)


def choice(settings: EngineSettings, on_gpu: bool = True, installed: bool = True, refused: str = "") -> str:
    return chosen(settings, PLACE, on_gpu, lambda: installed, lambda: refused).line(PLACE)


def never() -> str:
    raise AssertionError("it takes seconds, and is not the question")


def test_auto_takes_vllm_where_it_runs_the_policy_on_a_gpu_and_says_why() -> None:
    auto = EngineSettings()
    assert choice(auto) == "sampling.engine: vLLM, because it is installed, runs this policy, and a GPU is set aside"
    on_a_cpu = chosen(auto, PLACE, False, lambda: True, never)
    assert (on_a_cpu.kind, on_a_cpu.reason) == (
        "transformers",
        "no GPU is set aside (sampling.pool.gpus_per_actor)",
    )
    absent = chosen(auto, PLACE, True, lambda: False, never)
    assert (absent.kind, absent.reason) == ("transformers", "vLLM is not installed here")
    assert "transformers, because vLLM cannot run this policy here: no heads of 8" in choice(
        auto, refused="no heads of 8"
    )


def test_a_set_kind_is_taken_wherever_it_runs() -> None:
    for kind in ("transformers", "vllm"):
        found = chosen(EngineSettings(kind=kind), PLACE, False, lambda: False, never)  # type: ignore[arg-type]
        assert (found.kind, found.reason) == (kind, f"sampling.engine.kind is {kind}")


def test_an_option_that_one_engine_has_decides_for_it() -> None:
    found = chosen(EngineSettings(quantization="fp8"), PLACE, False, lambda: False, never)
    assert (found.kind, found.reason) == ("vllm", "sampling.engine.quantization is set, which it alone has")
    found = chosen(EngineSettings(prefix_cache_tokens=64), PLACE, True, lambda: True, never)
    assert found.kind == "transformers"
    assert ServedEngineSettings(prefix_cache_tokens=4096).wanted is None, "its default"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("{kind: transformers, quantization: fp8}", "quantization is an option of vLLM, and kind is transformers"),
        ("{kind: transformers, memory_share: 0.5}", "memory_share is an option of vLLM, and kind is transformers"),
        ("{kind: transformers, vllm: {seed: 1}}", "vllm is an option of vLLM, and kind is transformers"),
        ("{kind: vllm, prefix_cache_tokens: 64}", "prefix_cache_tokens is an option of the transformers engine"),
        ("{kv_cache_dtype: fp8, prefix_cache_tokens: 64}", "kv_cache_dtype is an option of vLLM, prefix_cache_tokens"),
        ("{kind: vllm, vllm: {max_model_len: 64}}", "vllm has max_model_len: set max_model_len instead"),
        ("{kind: vllm, vllm: {gpu_memory_utilization: 0.5}}", "set memory_share instead"),
        ("{kind: vllm, vllm: {trust_remote_code: true}}", "vllm has trust_remote_code: leave it out"),
        ("{kind: vllm, memory_share: 0.5}", "is 0: set .*engine.kv_cache_gib instead, or .* to 1"),
        ("{kind: vllm, vllm: {tensor_parallel_size: 2}}", "vllm has tensor_parallel_size: set tensor_parallel instead"),
        ("{kind: vllm, vllm: {pipeline_parallel_size: 2}}", "pipeline_parallel_size: set pipeline_parallel instead"),
        ("{kind: vllm, vllm: {data_parallel_size: 2}}", "leave it out: an engine has only the GPUs of its own"),
        ("{kind: transformers, pipeline_parallel: 2}", "pipeline_parallel is an option of vLLM, and kind is"),
        ("{pipeline_parallel: 0}", "from 1 to 100,000"),
        ("{kind: transformers, tensor_parallel: 2}", "tensor_parallel is an option of vLLM, and kind is transformers"),
        ("{tensor_parallel: 2, prefix_cache_tokens: 64}", "tensor_parallel is an option of vLLM, prefix_cache_tokens"),
        ("{tensor_parallel: 0}", "from 1 to 100,000"),
        ("{max_model_len: 8}", "from 16 to 1,000,000,000"),
        ("{knd: vllm}", r"did you mean .*engine\.kind\?"),
    ],
)
@pytest.mark.parametrize("where", ["sampling.engine", "engine"])
def test_what_an_engine_cannot_do_is_refused_by_name(word: str, said: str, where: str) -> None:
    record, file = (Preset, DEMO) if where.startswith("sampling") else (ServeSettings, CONFIG)
    with pytest.raises(SettingsError, match=said):
        load(record, file, [f"{where}={word}"])


def test_the_same_options_in_jobs_and_at_the_endpoint() -> None:
    words = (
        "{kind: vllm, max_num_seqs: 8, max_model_len: 2048, memory_share: 0.3, vllm: {enable_chunked_prefill: true}}"
    )
    preset = load(Preset, DEMO, [f"sampling.engine={words}", "sampling.pool.gpus_per_actor=1"])
    served = load(ServeSettings, CONFIG, [f"engine={words}", "num_gpus=1"])
    assert (
        preset.sampling.engine.model_dump().items() <= (served.engine.model_dump() | {"prefix_cache_tokens": 0}).items()
    )
    one = load(Preset, DEMO, ["sampling.engine.kind=vllm", "sampling.engine.vllm.block_size=32"]).sampling.engine
    assert one.vllm == {"block_size": 32}


def test_the_share_of_a_gpu_follows_what_is_set_aside() -> None:
    assert [sampling_place(gpus).memory_share for gpus in (1, 2, 0.5, 0)] == [0.9, 0.9, 0.45, 0.9]
    assert ENDPOINT.memory_share == 0.45, "a second engine fits beside it in a swap"


@pytest.mark.parametrize(
    ("record", "file", "engine", "gpus", "cpus"),
    [
        (Preset, DEMO, "sampling.engine", "sampling.pool.gpus_per_actor", "sampling.pool.cpus_per_actor"),
        (Preset, DEMO, "annotate", "annotate.pool.gpus_per_actor", "annotate.pool.cpus_per_actor"),
        (ServeSettings, CONFIG, "engine", "num_gpus", "num_cpus"),
    ],
    ids=["samplers", "annotators", "endpoint"],
)
def test_a_split_model_reserves_a_gpu_or_its_threads_for_each_part(
    record: type[Record], file: str, engine: str, gpus: str, cpus: str
) -> None:
    def refusal(*words: str) -> str:
        with pytest.raises(SettingsError) as refused:
            load(record, file, words)
        return str(refused.value)

    load(record, file, [f"{engine}.tensor_parallel=4", f"{gpus}=4"])
    load(record, file, [f"{engine}.tensor_parallel=2", f"{cpus}=2"])
    said = refusal(f"{engine}.tensor_parallel=4", f"{gpus}=2")
    assert f"{engine}.tensor_parallel is 4, and {gpus} 2: a part of the model needs a GPU of its own" in said
    assert said.endswith(f"so set {gpus} to 4")
    who = "predictor" if engine == "annotate" else "engine"
    said = refusal(f"{gpus}=4")
    assert f"{gpus} is 4, and the {who} would use one of them: set {engine}.tensor_parallel to 4" in said
    assert f"set {cpus} to 4, or {gpus} to 4" in refusal(f"{engine}.tensor_parallel=4", f"{cpus}=1")


def test_threads_of_each_part_are_reserved_too() -> None:
    words = ["engine.tensor_parallel=2", "threads=4"]
    load(ServeSettings, CONFIG, [*words, "num_cpus=8"])
    with pytest.raises(
        SettingsError, match=r"tensor_parallel is 2, 4 CPU thread\(s\) each, and num_cpus is 7: set num_cpu"
    ):
        load(ServeSettings, CONFIG, [*words, "num_cpus=7"])


def test_a_part_of_a_split_model_has_its_share_of_the_actor_s_threads(tmp_path: Path) -> None:
    words = ["sampling.engine.tensor_parallel=2", "sampling.pool.cpus_per_actor=6"]
    run = Run(load(Preset, DEMO, [*words, f"storage={tmp_path}"]))
    arguments = sampler(run, run.folder("policy"), 1.0)
    assert arguments["num_threads"] == 3
    assert arguments["gpus"] == 0
    [demand] = [d for d in needs(run, ["bootstrap-1/samples"]).demands if d.what == "sampling.pool"]
    assert (demand.cpus_per_actor, demand.gpus_per_actor) == (6, 0)


def test_a_part_of_a_predictor_has_its_share_of_the_actor_s_threads(tmp_path: Path) -> None:
    words = ["annotate.tensor_parallel=2", "annotate.pool.cpus_per_actor=6"]
    run = Run(load(Preset, DEMO, [*words, f"storage={tmp_path}"]))
    arguments = annotator(run, run.folder("predictor"))
    assert (arguments["num_threads"], arguments["tensor_parallel"]) == (3, 2)


def test_a_replica_of_a_split_model_asks_for_its_gpus_in_one_bundle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = load(ServeSettings, CONFIG, ["engine.tensor_parallel=4", "num_gpus=4", "num_cpus=8"])
    options = _policy(settings, Located(str(tmp_path), "large"), ALONE)._bound_deployment.ray_actor_options
    assert (options["num_gpus"], options["num_cpus"]) == (4, 8)


def test_every_option_of_one_engine_alone_is_an_option() -> None:
    assert {*VLLM_ONLY, *TRANSFORMERS_ONLY} <= EngineSettings.model_fields.keys()
    assert set(OWN_ARGUMENTS.values()) - {"", "dtype"} <= EngineSettings.model_fields.keys()


def test_fingerprints_of_runs_that_set_no_engine_are_as_before_there_was_one() -> None:
    before = {
        "sampling": {
            "pool": None,
            "max_num_seqs": 32,
            "max_tokens": 192,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
        "dtype": "float32",
    }
    assert _plain(sampling_settings(load(Preset, DEMO).sampling)) == before
    room = EngineSettings(max_num_seqs=32, kv_cache_gib=2, memory_share=0.5)
    pool = SamplingSettings().pool.model_copy(update={"gpus_per_actor": 1})
    assert _plain(sampling_settings(SamplingSettings(pool=pool, engine=room, max_tokens=192))) == before
    other = EngineSettings(kind="vllm", quantization="fp8", max_num_seqs=32)
    changed = _plain(sampling_settings(SamplingSettings(engine=other, max_tokens=192)))
    assert changed == {**before, "engine": {"kind": "vllm", "quantization": "fp8"}}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            EngineSettings(kind="vllm"),
            "sampling.engine.kind is vllm, which is not installed here .* auto or transformers",
        ),
        (
            EngineSettings(kv_cache_dtype="fp8"),
            "sampling.engine.kv_cache_dtype needs vLLM, .* or leave kv_cache_dtype out",
        ),
    ],
)
def test_an_engine_that_is_not_installed_is_said(settings: EngineSettings, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_installed(settings, PLACE)
    require_installed(EngineSettings(), PLACE)


@NO_VLLM
def test_vllm_s_arguments_are_those_of_the_installed_one() -> None:
    require_installed(EngineSettings(kind="vllm", vllm={"enable_chunked_prefill": True}), PLACE)
    with pytest.raises(
        UserError, match=r"sampling.engine.vllm has 'enable_chunked_prefil', .* mean 'enable_chunked_prefill'"
    ):
        require_installed(EngineSettings(vllm={"enable_chunked_prefil": True}), PLACE)


@NO_VLLM
def test_all_arguments_that_the_contract_fixes_are_vllm_s() -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert EngineArgs.__dataclass_fields__.keys() >= {*OWN_ARGUMENTS, *PARALLEL_ARGUMENTS}


@NO_VLLM
@pytest.mark.parametrize(("threads", "of_each"), [(3, 3), (None, torch.get_num_threads())])
def test_a_split_model_runs_in_processes_of_vllm_s_own(
    threads: int | None, of_each: int, wide_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.generation.vllm_start import FITTING, VllmStart

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    start = VllmStart(EngineSettings(tensor_parallel=2), PLACE, wide_policy, "float32", num_threads=threads)
    parallel = start._config(FITTING).parallel_config
    assert (parallel.tensor_parallel_size, parallel.distributed_executor_backend) == (2, "mp")
    assert os.environ["OMP_NUM_THREADS"] == str(of_each)
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


@NO_VLLM
def test_vllm_s_own_refusal_is_a_sentence(wide_policy: str) -> None:
    from actors.generation.vllm_start import VllmStart

    assert VllmStart(EngineSettings(), PLACE, wide_policy, "float32").refused() == ""
    wrong = VllmStart(EngineSettings(quantization="fp88"), PLACE, wide_policy, "float32").refused()
    assert "vLLM refuses the policy or sampling.engine: " in wrong
    assert "fp88" in wrong
    assert len(wrong.splitlines()) == 1


def test_auto_takes_transformers_for_guided_answers_and_what_is_set_stays() -> None:
    either = SamplingSettings()
    assert (either.engine_for(None).kind, either.engine_for(1).kind, either.engine_for(1.5).kind) == (
        "auto",
        "auto",
        "transformers",
    )
    fixed = SamplingSettings(engine=EngineSettings(kind="transformers"))
    assert fixed.engine_for(1.5) is fixed.engine
