"""Stages on several nodes: what Ray has placed where, and the policy's folder there; what Serve sets aside for them."""

import os
from pathlib import Path

import pytest
import ray
from ray.serve._private.config import ReplicaConfig
from support.engines import NO_VLLM
from support.stages import DEMO

from actors.generation.settings import ENDPOINT, EngineSettings
from actors.generation.vllm_stages import (
    WORKER_GPUS,
    folder_of_stages,
    require_whole_stages,
    same_folder,
    set_environment,
    stage_dtype,
)
from actors.kernels.machine_memory import ALONE
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.errors import UserError
from data.record import Record
from jobs.runner.preset import Preset
from serve.deploy import _policy
from serve.locate import Located
from serve.settings import ServeSettings

CONFIG = str(Path(__file__).parent.parent / "serve" / "config.yaml")
STAGES = {"tensor_parallel": 4, "pipeline_parallel": 2}


def test_stages_reserve_all_their_gpus_at_the_endpoint_alone() -> None:
    def refusal(record: type[Record], file: str, *words: str) -> str:
        with pytest.raises(SettingsError) as refused:
            load(record, file, words)
        return str(refused.value)

    stages = ["engine.pipeline_parallel=2", "engine.tensor_parallel=4"]
    assert load(ServeSettings, CONFIG, [*stages, "num_gpus=8"]).engine.wanted == "vllm"
    said = refusal(ServeSettings, CONFIG, *stages, "num_gpus=4")
    assert "engine.pipeline_parallel is 2, each stage has engine.tensor_parallel 4 GPUs, and num_gpus is 4: set" in said
    assert said.endswith("set num_gpus to 8, the GPUs of all stages")
    said = refusal(ServeSettings, CONFIG, *stages, "num_cpus=8")
    assert "num_gpus is 0: vLLM has stages on several nodes with GPUs alone; set num_gpus to 8, or leave" in said
    said = refusal(ServeSettings, CONFIG, *stages, "num_gpus=8", "policy=p", "adapters={games: g}")
    assert "do not have the files of adapters: leave adapters out" in said
    own = [f"sampling.{word}" for word in stages]
    said = refusal(Preset, DEMO, *own, "sampling.pool.gpus_per_actor=8")
    assert "sampling.engine.pipeline_parallel is 2, and Ray Data sets GPUs of one node alone aside" in said
    assert "only the endpoint has stages on several nodes" in said


def test_a_replica_with_stages_has_a_bundle_for_each_gpu_and_none_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = ServeSettings(engine=STAGES, num_gpus=8, num_cpus=6)  # type: ignore[arg-type]
    config: ReplicaConfig = _policy(settings, Located(str(tmp_path), "huge"), ALONE)._bound_deployment._replica_config
    assert (config.ray_actor_options["num_gpus"], config.ray_actor_options["num_cpus"]) == (0, 6)
    assert config.placement_group_bundles == [{"CPU": 6, "GPU": 1.0}] + 7 * [{"GPU": 1.0}]
    assert config.placement_group_strategy == "PACK", "on one node as far as it goes, but on several if need be"
    alone = ServeSettings(engine={"tensor_parallel": 4}, num_gpus=4)  # type: ignore[arg-type]
    config = _policy(alone, Located(str(tmp_path), "large"), ALONE)._bound_deployment._replica_config
    assert (config.placement_group_bundles, config.ray_actor_options["num_gpus"]) == (None, 4)


def test_a_second_engine_fits_into_the_same_bundles_in_a_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "1.0")
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    set_environment()
    assert float(os.environ["VLLM_RAY_PER_WORKER_GPUS"]) == WORKER_GPUS <= 1 / 2
    assert os.environ["VLLM_USE_RAY_V2_EXECUTOR_BACKEND"] == "1", "only that executor ends with its parent"


@pytest.mark.ray
def test_the_process_of_the_core_finds_the_cluster(ray_cluster: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RAY_PER_WORKER_GPUS", "1.0")
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "1")
    monkeypatch.setenv("RAY_ADDRESS", "")
    set_environment()
    assert os.environ["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address


@pytest.mark.parametrize("gpus", [[4, 4], [8], [4, 8]])
def test_whole_stages_on_each_node_are_taken(gpus: list[int]) -> None:
    require_whole_stages(gpus, 4, ENDPOINT)


def test_a_stage_on_two_nodes_is_refused() -> None:
    with pytest.raises(UserError, match=r"nodes with 6, 2 of them, and a stage of engine\.tensor_parallel 4 must be"):
        require_whole_stages([6, 2], 4, ENDPOINT)


def test_all_nodes_have_the_policy_under_one_path() -> None:
    assert same_folder("s3://models/huge", ["/c/0", "/c/0"]) == "/c/0"
    with pytest.raises(UserError, match=r"1 of the 2 nodes of the engine have no folder runs/huge: put the policy on"):
        same_folder("runs/huge", ["runs/huge", ""])
    with pytest.raises(UserError, match=r"is in /a/0 on one node of the engine and in /b/0 on another.*XDG_CACHE_HOME"):
        same_folder("s3://models/huge", ["/b/0", "/a/0"])


def test_a_process_without_a_placement_group_is_told_where_there_is_one(tmp_path: Path) -> None:
    settings = EngineSettings(tensor_parallel=4, pipeline_parallel=2)
    with pytest.raises(UserError, match=r"^engine\.pipeline_parallel is 2, and this process is in no placement group"):
        folder_of_stages(str(tmp_path), settings, ENDPOINT)


def test_auto_is_what_gpus_multiply_faster() -> None:
    assert [stage_dtype(dtype) for dtype in ("auto", "float32", "float16")] == ["bfloat16", "float32", "float16"]


@NO_VLLM
def test_vllm_takes_the_arguments_of_stages(wide_policy: str) -> None:
    """Its configuration alone: this vLLM, for CPUs, has no such executor to start."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.executor.abstract import Executor

    from actors.generation.vllm_process import ENDING_WITH_PARENT
    from actors.generation.vllm_start import FITTING, VllmStart

    engine = EngineSettings(tensor_parallel=2, pipeline_parallel=2)
    start = VllmStart(engine, ENDPOINT, wide_policy, "float32")
    config = EngineArgs(**start._arguments(FITTING, on_cpu=True)).create_engine_config()
    parallel, runs = config.parallel_config, Executor.get_class(config)
    assert (runs.uses_ray, runs.supports_pp) == (True, True)
    assert issubclass(ENDING_WITH_PARENT[runs], runs)
    assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size) == (2, 2)
    assert (parallel.world_size, parallel.distributed_executor_backend, parallel.use_ray) == (4, "ray", True)
    assert "built for CPUs" in start.refused()
