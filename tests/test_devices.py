"""A process uses what Ray assigned to it: beside GPUs that it did not reserve, all runs on the CPU."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
import torch

from actors.generation.settings import ENDPOINT
from actors.generation.vllm_start import require_own_device
from actors.kernels.devices import CPU, assigned_devices, devices_of, own_device, process_group_backend
from actors.modeling.policy import Policy
from actors.modeling.regressor import PredictorTask
from actors.scoring.predictor import Predictor
from actors.training.examples import ExampleSpec, PredictorExamples
from actors.training.metrics import peak_flops, peak_memory_bytes
from actors.training.settings import LearnerSettings
from cluster.preflight import ClusterNode
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import to_table
from data.errors import UserError
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.runner import plan
from jobs.runner.needs import needs
from jobs.runner.preset import Preset
from jobs.runner.stage import Run
from serve.deploy import require_gpus
from serve.settings import ServeSettings
from tests.support import gpu_machine

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "jobs" / "presets" / "demo.yaml")
SCHEMA = shipped("lab")
for module in (sys.modules[__name__], gpu_machine):
    ray.cloudpickle.register_pickle_by_value(module)  # Ray's workers cannot import a test file


@pytest.mark.parametrize(
    ("ids", "visible", "devices"),
    [
        ([], None, ["cpu"]),
        ([], "0,1", ["cpu"]),
        (["3"], "3", ["cuda:0"]),
        (["2"], "0,1,2,3", ["cuda:2"]),
        (["5", "4"], "4,5", ["cuda:0", "cuda:1"]),
        (["10", "2"], "10,2", ["cuda:0", "cuda:1"]),
        (["1"], None, ["cuda:1"]),
        (["MIG-4f"], "MIG-4f", ["cuda:0"]),
    ],
    ids=["none", "none reserved", "one", "shared with other workers", "two", "in text order", "not set", "a slice"],
)
def test_the_gpus_that_ray_assigned_as_torch_numbers_them(ids: list[str], visible: str | None, devices: list[str]):
    assert [str(d) for d in devices_of(ids, visible, torch_sees_gpus=True)] == devices


@pytest.mark.parametrize(
    ("ids", "visible", "sees", "sentence"),
    [
        (["0"], "0", False, r"Ray assigned GPU 0 to this process, but its PyTorch .* can use none; .*use_gpu=false"),
        (["2"], "0,1", True, r"Ray assigned GPU 2 to this process, but CUDA_VISIBLE_DEVICES is 0,1; leave"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_sentence(ids: list[str], visible: str, sees: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        devices_of(ids, visible, sees)


def test_a_process_that_ray_does_not_know_runs_on_the_cpu_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert assigned_devices() == (CPU,)
    assert own_device() == CPU
    assert own_device("cuda:1") == torch.device("cuda", 1)


def test_weights_stay_on_the_cpu_beside_a_gpu(
    tiny_predictor: str, tiny_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Predictor.load(tiny_predictor).device == CPU
    assert Policy.load(tiny_policy).model.device == CPU
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):  # where one is asked for, it is looked for
        Policy.load(tiny_policy, device="cuda")


def test_metrics_are_those_of_the_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU in the machine, a worker on the CPU reported 0 bytes and the GPU's peak."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 7)
    assert peak_memory_bytes(CPU) > 50 * 2**20
    assert peak_memory_bytes(torch.device("cuda", 0)) == 7
    assert 1e8 < peak_flops(CPU, "fp32") < 1e15


def test_host_sums_go_over_gloo_and_weights_over_nccl_where_workers_have_gpus() -> None:
    assert [process_group_backend(use_gpu) for use_gpu in (False, True)] == ["gloo", "cpu:gloo,cuda:nccl"]


ACCELERATOR = """
import sys
from tests.support.gpu_machine import see_a_gpu
see_a_gpu()
if sys.argv[1] == "imported before":
    import deepspeed
    print(deepspeed.get_accelerator().device_name())
import torch
from actors.training.deepspeed_engine import use_accelerator
use_accelerator(torch.device("cpu"))
import deepspeed
print(deepspeed.get_accelerator().device_name())
"""


@pytest.mark.parametrize(("when", "names"), [("first", ["cpu"]), ("imported before", ["cuda", "cpu"])])
def test_deepspeed_runs_where_the_process_does(when: str, names: list[str]) -> None:
    command = [sys.executable, "-c", ACCELERATOR, when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if line in ("cpu", "cuda")] == names


@dataclass(frozen=True)
class BesideAGpu(PredictorTask):
    """The task in a worker on a GPU machine; it asserts what DeepSpeed was asked for before it builds the model."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        gpu_machine.see_a_gpu()

    def build(self) -> torch.nn.Module:
        import deepspeed

        assert torch.cuda.is_available()
        assert deepspeed.get_accelerator().device_name() == "cpu"
        return super().build()


@pytest.mark.slow
@pytest.mark.ray
def test_a_training_without_gpus_on_a_machine_with_one_trains_on_the_cpu(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    """With the precision that is the default: both workers measure, agree and say what they chose."""
    rows = to_table(list(Lab(LabSettings(num_rows=30, rated_share=1)).rows()), SCHEMA)
    examples = Storage(str(tmp_path)) / "examples"
    write_table(PredictorExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256))(rows), examples)
    learner = LearnerSettings(num_workers=2, zero_stage=2, pack_tokens=256, max_tokens=256, packs_per_step=4)
    assert (learner.use_gpu, learner.precision) == (False, "auto")
    task = BesideAGpu(tiny_base, SCHEMA, "steerlm")
    metrics = fit("test", task, learner, Corpus.of(examples), Storage(str(tmp_path)) / "out")
    assert metrics.steps > 1
    assert metrics.precision in ("bf16", "fp32")
    assert metrics.peak_memory_bytes > 50 * 2**20, "that of the GPU nobody used"


@ray.remote(num_cpus=0)
class Beside:
    """A process of Ray without a GPU, on a GPU machine: loads what holds weights, as pools and replicas do."""

    def __init__(self) -> None:
        gpu_machine.see_a_gpu()

    def devices(self, predictor: str, policy: str) -> dict[str, str]:
        from actors.generation.factory import load_engine
        from actors.generation.protocol import Sampling
        from actors.generation.sampler import Sampler
        from actors.generation.settings import EngineSettings
        from actors.scoring.annotator import Annotator
        from serve.scorer import Scorer

        annotator = Annotator(predictor, SCHEMA, "", 256, 256, "float32", 1)
        settings = EngineSettings(max_num_seqs=2)
        sampler = Sampler(policy, SCHEMA, Sampling(4), settings, "float32", 1)
        text, engine = load_engine(settings, policy, "float32")
        scorer = Scorer(predictor, "float32", 256, 256, 1)
        found = {
            "annotator": annotator.rater.predictor.device,
            "sampler": sampler.policy.model.device,  # type: ignore[attr-defined]
            "replica": text.model.device,  # type: ignore[attr-defined]
            "scorer": scorer._rater.predictor.device,
        }
        engine.close()
        sampler.engine.close()
        return {name: str(device) for name, device in found.items()}


@pytest.mark.ray
def test_nothing_goes_to_a_gpu_that_is_not_reserved(ray_cluster: object, tiny_predictor: str, tiny_policy: str) -> None:
    found = ray.get(Beside.remote().devices.remote(tiny_predictor, tiny_policy))
    assert found == dict.fromkeys(("annotator", "sampler", "replica", "scorer"), "cpu")


ASSIGNED = """
import json, ray, torch
ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False, object_store_memory=100 * 2**20)
@ray.remote(num_cpus=0)
class Process:
    def devices(self):
        torch.cuda.is_available = lambda: True
        from actors.kernels.devices import assigned_devices
        return [str(d) for d in assigned_devices()]
actors = [Process.options(num_gpus=n).remote() for n in (0, 1, 0.5, 2)]
print(json.dumps([ray.get(actor.devices.remote()) for actor in actors]))
from actors.kernels.devices import assigned_devices
print(json.dumps([str(d) for d in assigned_devices()]))
"""


@pytest.mark.ray
def test_a_process_uses_the_gpus_that_it_reserved_and_a_driver_none(tmp_path: Path) -> None:
    """Ray counts four GPUs on its word and assigns them as on a real machine."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", ASSIGNED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    actors, driver = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert actors == [["cpu"], ["cuda:0"], ["cuda:0"], ["cuda:0", "cuda:1"]]
    assert driver == ["cpu"]


def test_a_vllm_for_other_devices_is_refused_with_the_setting() -> None:
    require_own_device(True, CPU, ENDPOINT)
    require_own_device(False, torch.device("cuda"), ENDPOINT)
    with pytest.raises(UserError, match=r"num_gpus is 0, but the vLLM installed here is built for GPUs.*num_gpus to 1"):
        require_own_device(False, CPU, ENDPOINT)
    with pytest.raises(UserError, match=r"num_gpus is above 0, but .* built for CPUs.* set num_gpus to 0"):
        require_own_device(True, torch.device("cuda"), ENDPOINT)


@pytest.mark.parametrize(
    ("settings", "gpus", "sentence"),
    [
        ({"num_gpus": 1}, [0], r"^num_gpus is 1, but Ray has no GPU: set num_gpus=0 to run on the CPU, or start Ray"),
        (
            {"num_gpus": 2, "engine": {"tensor_parallel": 2}},
            [1, 1],
            r"^num_gpus is 2, but Ray has 2 GPUs, enough for 0 of 1 .*, because no node has 2: set.*pipeline_parallel$",
        ),
        ({"num_gpus": 1, "min_replicas": 3, "max_replicas": 3}, [2], r"enough for 2 of 3 .* lower min_replicas to 2$"),
        (
            {"num_gpus": 4, "engine": {"tensor_parallel": 2, "pipeline_parallel": 2}},
            [3, 1],
            r"1 replica\(s\) need 2 GPUs of one node 2 times, and Ray has that 1 times \(GPUs of its nodes: 3, 1\)",
        ),
        ({"scorer": {"num_gpus": 0.5}}, [0], r"^scorer.num_gpus is 0.5, but Ray has no GPU: set scorer.num_gpus=0"),
    ],
)
def test_an_endpoint_that_would_wait_for_gpus_is_refused(
    settings: dict[str, Any], gpus: list[int], sentence: str
) -> None:
    nodes = [ClusterNode({"CPU": 2.0, "GPU": float(n)}) for n in gpus]
    with pytest.raises(UserError, match=sentence):
        require_gpus(ServeSettings(**settings), 1, True, nodes)
    require_gpus(ServeSettings(**settings), 1, True, [ClusterNode({"CPU": 1.0, "GPU": 4.0})])


def test_a_predictor_alone_needs_the_pool_that_scores_what_was_held_out(tmp_path: Path) -> None:
    """Else `jobs.train_predictor` trains for hours before it asks for a GPU that no node has."""
    words = [f"storage={tmp_path}", "annotate.pool.gpus_per_actor=1"]
    found = needs(Run(load(Preset, DEMO, words)), ["predictor"])
    assert [d.setting for d in found.demands if d.gpus_per_actor] == ["annotate.pool"]
    nothing_held_out = needs(Run(load(Preset, DEMO, [*words, "predictor.validation_share=0"])), ["predictor"])
    assert not [d for d in nothing_held_out.demands if d.gpus_per_actor]


def test_the_time_of_a_training_on_the_cpu_is_planned_beside_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "torch_sees_a_gpu", lambda: True)
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}"]))
    write_table(to_table(list(Lab(LabSettings(num_rows=20)).rows()), SCHEMA), run.folder("rows") / "rows")
    lines = [line for line in plan.plan_lines(run, []) if "steps" in line]
    assert lines
    assert not [line for line in lines if "unknown" in line]
