"""The manifests of cluster/kuberay: versions as in the lock, safe by default, settings that we and Ray Serve know."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema
from support.kuberay_manifests import FOLDER, loaded
from support.kuberay_types import MANIFESTS
from support.llama_shapes import LLAMA_8B, LLAMA_70B
from transformers import AutoConfig

from actors.generation.planned_engine import PlannedEngine
from actors.modeling.model_memory import GIB, GPU_PROCESS
from actors.modeling.model_shape import ModelShape, shape_of
from cluster.preflight import ClusterNode, Demand
from serve.locate import Located
from serve.plan import ServePlan
from serve.settings import ServeSettings

ROOT = FOLDER.parent.parent
PART_GIB = 6
"""Of the CPU's memory: a process with torch and CUDA, while it loads weights."""

SERVICES: dict[str, tuple[float, dict[str, Any]]] = {
    "rayservice": (44, LLAMA_8B | {"max_position_embeddings": 131_072}),  # an L40S of 48 GB
    "rayservice-70b": (79, LLAMA_70B),  # an H100 of 80 GB
}
"""Memory of a GPU of its nodes in GiB, and the model."""
LOCKED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
LOCKED_POD = {"runAsNonRoot": True, "fsGroup": 100, "seccompProfile": {"type": "RuntimeDefault"}}


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "raycluster", loaded("raycluster")["spec"]
    yield "rayjob", loaded("rayjob")["spec"]["rayClusterSpec"]
    for name in SERVICES:
        yield name, loaded(name)["spec"]["rayClusterConfig"]


def application(name: str) -> dict[str, Any]:
    """What a service gives to Ray Serve."""
    [found] = yaml.safe_load(loaded(name)["spec"]["serveConfigV2"])["applications"]
    return dict(found)


def planned(name: str) -> tuple[PlannedEngine, ModelShape, ServeSettings]:
    """The engine of a service's replicas on the card of its nodes, its model, and the settings."""
    settings = ServeSettings.model_validate(application(name)["args"])
    card_gib, config = SERVICES[name]
    plan = ServePlan(settings.model_copy(update={"memory_gib": card_gib}), [Located("", "stable")], None)
    shape = shape_of(AutoConfig.for_model("llama", **config))
    return plan.engine(shape), shape, settings


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]])


def test_versions_are_those_of_the_lock() -> None:
    found = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found
    base = re.search(r"^FROM (\S+)", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    assert base
    assert base[1].partition("@")[0] == f"rayproject/ray:{found[1]}-py311-gpu"
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project
    for name, cluster in clusters():
        assert cluster["rayVersion"] == found[1], name
        images = [image(c) for pod in pods(cluster) for c in pod["containers"]]
        assert {version for _, version in images} == {project[1]}, name
        assert {target for target, _ in images} <= stages().keys(), "an image that cluster/Dockerfile does not make"


def image(container: dict[str, Any]) -> tuple[str, str]:
    """The target of cluster/Dockerfile that a container runs, and its version."""
    found = re.fullmatch(r"YOUR-REGISTRY/steerlm(?:-([a-z]+))?:([\d.]+)", container["image"])
    assert found, container["image"]
    return found[1] or "jobs", found[2]


def stages() -> dict[str, str]:
    """The targets of cluster/Dockerfile, each with the text of its own instructions."""
    _, *parts = re.split(r"^FROM \S+ AS (\w+)$", (ROOT / "cluster" / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_target_is_named_with_the_command_that_builds_it() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    for target in stages():
        name = "steerlm" if target == "jobs" else f"steerlm-{target}"
        assert re.search(
            rf"^#   docker build -f cluster/Dockerfile --target {target} +-t YOUR-REGISTRY/{name}:", text, re.M
        )


def test_an_image_has_what_its_manifest_asks_for() -> None:
    """vLLM where the engine is vLLM, and EFA's libraries where a pod asks for EFA's devices."""
    for name, cluster in clusters():
        for pod in pods(cluster):
            [container] = pod["containers"]
            target, _ = image(container)
            efa = "vpc.amazonaws.com/efa" in container["resources"]["limits"]
            assert efa == (target == "efa"), name
            assert efa == ("efa_installer.sh" in stages()[target]), name
            assert efa == ("FI_PROVIDER=efa" in stages()[target]), name
            assert not efa or "hugepages-2Mi" in container["resources"]["limits"], name
    for name in SERVICES:
        assert application(name)["args"]["engine"]["kind"] == "vllm"
        for pod in pods(loaded(name)["spec"]["rayClusterConfig"]):
            target, _ = image(pod["containers"][0])
            assert "-r cluster/vllm.lock" in stages()[target]
    lock = (ROOT / "cluster" / "vllm.lock").read_text()
    assert re.search(r"^vllm==", lock, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_weights_and_several_whole_conversations_fit_the_share_of_the_card(name: str) -> None:
    engine, shape, settings = planned(name)
    assert engine.problem(shape) == ""
    found, card = engine.memory(shape), SERVICES[name][0] * GIB
    assert engine.tokens == settings.engine.max_model_len
    assert found.num_answers is not None
    assert found.num_answers >= 2, "long conversations at once"
    assert found.limit == settings.engine.memory_share * card
    assert 2 * found.limit < card - GPU_PROCESS, "in a swap a second engine is beside it"
    assert found.weights + found.others + found.num_answers * found.answer <= found.limit


def test_without_a_limit_the_8b_model_would_not_start_on_its_card() -> None:
    """Llama 3.1 8B: 32 layers, 8 key and value heads of width 128, two bytes each; vLLM refuses less than a context."""
    engine, shape, _ = planned("rayservice")
    whole = replace(engine, tokens=131_072)
    assert whole.memory(shape).answer == 131_072 * 2 * 32 * 8 * 128 * 2 == 16 * GIB
    assert "no room for its KV cache of 16.0 GiB; what helps: " in whole.problem(shape)


def test_the_70b_model_fits_no_fewer_gpus_at_its_share() -> None:
    engine, shape, settings = planned("rayservice-70b")
    for parts in (1, 2, 4):
        fewer = settings.engine.model_copy(update={"tensor_parallel": parts})
        assert not replace(engine, settings=fewer).memory(shape).fits


@pytest.mark.parametrize("name", SERVICES)
def test_a_worker_s_pod_holds_what_a_replica_asks_for(name: str) -> None:
    engine, shape, settings = planned(name)
    [group] = loaded(name)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    asks, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert asks["nvidia.com/gpu"] == limits["nvidia.com/gpu"]
    node = ClusterNode({"CPU": float(asks["cpu"]), "GPU": float(asks["nvidia.com/gpu"])}, group["labels"])
    assert Demand("replica", 1, 1, settings.num_cpus, settings.num_gpus).fit_on(node) == 1
    if settings.predictor is not None:
        assert settings.num_gpus + settings.scorer.num_gpus > node.gpus, "the predictor has a node of its own"
        assert Demand("scorer", 1, 1, settings.scorer.num_cpus, settings.scorer.num_gpus).fit_on(node) >= 1
    nodes = 1 if settings.predictor is not None else 0
    assert settings.num_gpus == node.gpus, "a replica takes all of a node's"
    assert group["minReplicas"] == settings.min_replicas + nodes
    assert group["maxReplicas"] == settings.max_replicas + nodes
    memory, parts = gib(limits["memory"]), settings.engine.tensor_parallel
    own = 0.7 * memory  # Ray's object store takes the rest
    assert own > (parts + 1) * PART_GIB, "each part of the model is a process"
    assert own * GIB > parts * engine.memory(shape).weights, "files that are being read stay in memory"
    if "ephemeral-storage" in asks:
        assert gib(asks["ephemeral-storage"]) * GIB > 2 * parts * engine.memory(shape).weights, "two in a swap"


def gib(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))


def test_ray_is_told_before_a_worker_s_pod_is_stopped() -> None:
    for name, cluster in clusters():
        for pod in (group["template"]["spec"] for group in cluster["workerGroupSpecs"]):
            [container] = pod["containers"]
            command = container["lifecycle"]["preStop"]["exec"]["command"]
            assert command[:5] == ["python", "-m", "cluster.spot", "leave", "--grace-s"], name
            assert (ROOT / "cluster" / "spot.py").exists()
            assert float(command[5]) + 10 < pod["terminationGracePeriodSeconds"], name
            spot = "steerlm/spot" in str(pod.get("tolerations"))
            assert not spot or pod["terminationGracePeriodSeconds"] < 120, "AWS's notice is two minutes"


def test_a_job_s_cluster_is_the_cluster() -> None:
    assert loaded("rayjob")["spec"]["rayClusterSpec"] == loaded("raycluster")["spec"]


def test_no_unknown_key_for_ray_either() -> None:
    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for name, cluster in clusters():
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            assert group["rayStartParams"].keys() <= options, name
    assert yaml.safe_load(loaded("rayjob")["spec"]["runtimeEnvYAML"]).keys() <= RuntimeEnv.known_fields


def test_the_operator_would_take_it() -> None:
    """What KubeRay checks beyond its types, before it starts a pod."""
    for name, cluster in clusters():
        # With autoscaler v2 a pod must not be restarted in place.
        assert all(pod.get("restartPolicy", "Never") == "Never" for pod in pods(cluster)), name
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["maxReplicas"], name
    # The cluster's name is the job's or the service's with a suffix, and a label's value.
    assert all(re.fullmatch(r"[a-z][-a-z0-9]{0,45}[a-z0-9]", loaded(name)["metadata"]["name"]) for name in MANIFESTS)


def test_safe_by_default() -> None:
    for name, cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"}, name
        assert "serviceType" not in cluster["headGroupSpec"], "nothing outside the cluster may reach the head"
        assert cluster["autoscalerOptions"]["securityContext"] == LOCKED, name
        for pod in pods(cluster):
            assert pod["securityContext"] == LOCKED_POD, name
            for container in pod["containers"]:
                assert container["securityContext"] == LOCKED, name
                assert "env" not in container, "no secret in a manifest"
    [submitter] = loaded("rayjob")["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["securityContext"] == LOCKED
    policy = loaded("networkpolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["ingress"]), "a rule without `from` lets everyone in"
    for peer in (peer for rule in policy["ingress"] for peer in rule["from"]):
        assert peer.get("namespaceSelector", {"all": "our own"}), "an empty selector admits pods of any namespace"


@pytest.mark.case("B13: a worker with the autoscaler's rights")
def test_only_the_head_may_ask_the_api_server() -> None:
    for name, cluster in clusters():
        head, *workers = pods(cluster)
        assert head["serviceAccountName"] == "steerlm-head", name
        for pod in workers:
            assert pod["serviceAccountName"] == "steerlm-worker", name
            assert pod["automountServiceAccountToken"] is False, name
    assert loaded("rayjob")["spec"]["submitterPodTemplate"]["spec"]["automountServiceAccountToken"] is False


def test_the_image_s_user_may_read_mounted_secrets() -> None:
    """A secret's files are root's; `fsGroup` makes them readable for the image's group."""
    user = re.findall(r"^USER \d+:(\d+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)[-1]
    for name, cluster in clusters():
        assert {pod["securityContext"]["fsGroup"] for pod in pods(cluster)} == {int(user)}, name


def test_the_policy_lets_in_who_submits_the_job() -> None:
    """KubeRay's submitter has no label `ray.io/cluster`: it is a Job's pod, and the Job has the RayJob's name."""
    job = loaded("rayjob")
    assert job["spec"]["submissionMode"] == "K8sJobMode"
    submitter = {"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": job["metadata"]["name"]}}}
    assert {"from": [submitter], "ports": [{"port": 8265, "protocol": "TCP"}]} in loaded("networkpolicy")["spec"][
        "ingress"
    ]


def test_the_head_computes_nothing_and_roles_are_those_of_the_presets() -> None:
    for name, cluster in clusters():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", name
    roles = {group["labels"]["role"] for _, cluster in clusters() for group in cluster["workerGroupSpecs"]}
    aws = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    assert {node["labels"]["role"] for node in aws.values() if "labels" in node} | {"serve"} == roles


def test_every_worker_has_shared_memory_for_its_object_store() -> None:
    for name, cluster in clusters():
        for group in cluster["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"], name
            gib = [
                int(v["emptyDir"]["sizeLimit"].removesuffix("Gi"))
                for v in pod["volumes"]
                if v["name"] == "shared-memory"
            ]
            memory = int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi"))
            assert gib[0] >= 0.3 * memory, "Ray's object store takes 30 %"


@pytest.mark.parametrize("name", SERVICES)
def test_the_endpoint_s_settings_are_ours_and_serve_s(name: str) -> None:
    config = yaml.safe_load(loaded(name)["spec"]["serveConfigV2"])
    assert set(config) == {"proxy_location", "http_options", "applications"}
    ServeDeploySchema.model_validate(config)
    [application] = config["applications"]
    settings = ServeSettings.model_validate(application["args"])
    assert settings.keys == "/home/ray/secrets/keys.txt"
    with pytest.raises(ValueError, match="min_replica"):
        ServeSettings.model_validate(application["args"] | {"min_replica": 1})
