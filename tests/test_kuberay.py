"""The manifests of cluster/kuberay: what an API server and KubeRay would take, versions as in the lock, safe by default.

Pods and policies are held to Kubernetes' own types, the rest to our table of KubeRay's; with the folder STEERLM_KUBERAY_CRDS also to the CRDs themselves.
"""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema
from support.kube_schema import RELEASES, custom_resources, kubernetes, mistakes, resource
from support.kuberay_types import MANIFESTS

from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster" / "kuberay"
CRDS = os.environ.get("STEERLM_KUBERAY_CRDS")

SCHEMAS = MANIFESTS | {
    "networkpolicy": resource(
        "networking.k8s.io/v1", "NetworkPolicy", kubernetes("api.networking.v1.NetworkPolicySpec")
    )
}
FREE = {"labels", "matchLabels", "nodeSelector", "rayStartParams", "requests", "limits"}
"""Below these a schema takes any key, or any of a form."""

Steps = tuple[str | int, ...]


def loaded(name: str) -> dict[str, Any]:
    """Through JSON, as it reaches the API server: what YAML's anchors share is not shared any more."""
    document: dict[str, Any] = json.loads(json.dumps(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())))
    return document


def steps(value: Any, way: Steps = ()) -> Iterator[Steps]:
    """The way to everything in a document, from the outside in."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*way, key)
        yield from steps(below, (*way, key))


def at(document: Any, way: Steps) -> Any:
    for key in way:
        document = document[key]
    return document


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "raycluster", loaded("raycluster")["spec"]
    yield "rayjob", loaded("rayjob")["spec"]["rayClusterSpec"]
    yield "rayservice", loaded("rayservice")["spec"]["rayClusterConfig"]


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_kubernetes_would_take_it(name: str) -> None:
    document = loaded(name)
    assert [(release, said) for release in RELEASES for said in mistakes(document, SCHEMAS[name], release)] == []


def test_no_manifest_is_left_out() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == SCHEMAS.keys()


@pytest.mark.skipif(
    not CRDS,
    reason="STEERLM_KUBERAY_CRDS names no folder with KubeRay's CRDs (ray.io_*.yaml, as its Helm chart ships them)",
)
def test_kuberay_s_own_crds_take_it() -> None:
    assert CRDS
    crds = custom_resources(Path(CRDS))
    for name in MANIFESTS:
        document = loaded(name)
        asked = document["apiVersion"], document["kind"]
        assert asked in crds, f"{CRDS} has {sorted(crds)}, not {asked}"
        assert mistakes(document, crds[asked]) == [], name


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_typo_in_any_key_is_found(name: str) -> None:
    whole = loaded(name)
    ways = [way for way in steps(whole) if isinstance(way[-1], str) and not FREE & set(way[:-1])]
    assert len(ways) > 20
    for *above, key in ways:
        document = copy.deepcopy(whole)
        parent = at(document, tuple(above))
        parent[f"{key}s"] = parent.pop(key)
        assert any(f"'{key}s' was unexpected" in sentence for sentence in mistakes(document, SCHEMAS[name])), (
            *above,
            key,
        )


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_wrong_type_anywhere_is_found(name: str) -> None:
    whole = loaded(name)
    for *above, key in steps(whole):
        document = copy.deepcopy(whole)
        parent = at(document, tuple(above))
        for misfit in ("no such thing" if isinstance(parent[key], dict | list) else {"no": "such thing"}, None):
            parent[key] = misfit
            assert mistakes(document, SCHEMAS[name]), (*above, key, misfit)


WORKER: Steps = ("spec", "workerGroupSpecs", 1)
CONTAINER: Steps = (*WORKER, "template", "spec", "containers", 0)
SERVED: Steps = ("spec", "rayClusterConfig", "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("name", "way", "value", "said"),
    [
        (
            "raycluster",
            ("spec", "autoscalerOption"),
            {},
            "$.spec: Additional properties are not allowed ('autoscalerOption' was unexpected)",
        ),
        (
            "raycluster",
            (*CONTAINER, "resource"),
            {},
            "containers[0]: Additional properties are not allowed ('resource' was unexpected)",
        ),
        (
            "raycluster",
            (*WORKER, "maxReplicas"),
            "two",
            "$.spec.workerGroupSpecs[1].maxReplicas: 'two' is not of type 'integer'",
        ),
        ("raycluster", (*WORKER, "minReplicas"), -1, "minReplicas: -1 is less than the minimum of 0"),
        (
            "raycluster",
            (*WORKER, "rayStartParams"),
            {"num-cpus": 0},
            "rayStartParams['num-cpus']: 0 is not of type 'string'",
        ),
        (
            "raycluster",
            (*WORKER, "rayStartParams"),
            {"labels": "role=cpu"},
            "rayStartParams: 'labels' should not be valid",
        ),
        ("raycluster", (*CONTAINER, "resources", "limits", "memory"), "56GiB", "limits.memory: '56GiB' is not valid"),
        ("raycluster", (*CONTAINER, "resources", "limits", "gpu"), "1", "limits: 'gpu' does not match"),
        ("raycluster", ("spec", "authOptions", "mode"), "tokens", "mode: 'tokens' is not one of ['disabled', 'token']"),
        ("raycluster", ("spec", "tlsOptions"), {"enabled": True}, "('tlsOptions' was unexpected)"),
        (
            "rayjob",
            ("spec", "backoffLimits"),
            3,
            "$.spec: Additional properties are not allowed ('backoffLimits' was unexpected)",
        ),
        ("rayjob", ("spec", "submissionMode"), "K8SJobMode", "submissionMode: 'K8SJobMode' is not one of"),
        (
            "rayjob",
            ("spec", "shutdownAfterJobFinishes"),
            "true",
            "shutdownAfterJobFinishes: 'true' is not of type 'boolean'",
        ),
        (
            "rayservice",
            ("spec", "upgradeStrategy", "type"),
            "Recreate",
            "type: 'Recreate' is not one of ['NewCluster', 'None']",
        ),
        (
            "rayservice",
            (*SERVED, "template", "spec", "volumes", 0, "secret", "defaultMode"),
            "0440",
            "defaultMode: '0440' is not of type 'integer', 'null'",
        ),
        ("rayservice", ("apiVersion",), "ray.io/v1alpha1", "$.apiVersion: 'ray.io/v1' was expected"),
        (
            "networkpolicy",
            ("spec", "policyType"),
            ["Ingress"],
            "$.spec: Additional properties are not allowed ('policyType' was unexpected)",
        ),
        ("networkpolicy", ("spec", "ingress", 1, "ports", 0, "port"), 82.65, "port: 82.65 is not valid"),
    ],
)
def test_what_is_said_of_a_mistake(name: str, way: Steps, value: Any, said: str) -> None:
    document = loaded(name)
    at(document, way[:-1])[way[-1]] = value
    [sentence] = mistakes(document, SCHEMAS[name])
    assert said in sentence


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("raycluster", ("metadata",)),
        ("raycluster", ("spec", "headGroupSpec")),
        ("raycluster", ("spec", "rayVersion")),
        ("raycluster", (*WORKER, "maxReplicas")),
        ("raycluster", (*WORKER, "template")),
        ("raycluster", (*CONTAINER, "name")),
        ("raycluster", (*CONTAINER, "volumeMounts", 0, "mountPath")),
        ("rayjob", ("spec", "entrypoint")),
        ("rayjob", ("spec", "rayClusterSpec", "headGroupSpec", "template")),
        ("rayjob", ("spec", "shutdownAfterJobFinishes")),
        ("rayservice", ("spec", "rayClusterConfig")),
        ("rayservice", (*SERVED, "template", "spec", "containers", 0, "readinessProbe", "httpGet", "port")),
        ("networkpolicy", ("spec",)),
        ("networkpolicy", ("spec", "podSelector", "matchExpressions", 0, "operator")),
    ],
)
def test_a_missing_key_is_found(name: str, way: Steps) -> None:
    document = loaded(name)
    del at(document, way[:-1])[way[-1]]
    [sentence] = mistakes(document, SCHEMAS[name])
    assert f"'{way[-1]}' is a" in sentence


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
        assert {c["image"] for pod in pods(cluster) for c in pod["containers"]} == {
            f"YOUR-REGISTRY/steerlm:{project[1]}"
        }, name


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
        for pod in pods(cluster):
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "runAsNonRoot": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }, name
                assert "env" not in container, "no secret in a manifest"
    policy = loaded("networkpolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["ingress"]), "a rule without `from` lets everyone in"


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


def test_the_endpoint_s_settings_are_ours_and_serve_s() -> None:
    config = yaml.safe_load(loaded("rayservice")["spec"]["serveConfigV2"])
    assert set(config) == {"proxy_location", "http_options", "applications"}
    ServeDeploySchema.model_validate(config)
    [application] = config["applications"]
    settings = ServeSettings.model_validate(application["args"])
    assert settings.keys == "/home/ray/secrets/keys.txt"
    with pytest.raises(ValueError, match="min_replica"):
        ServeSettings.model_validate(application["args"] | {"min_replica": 1})
