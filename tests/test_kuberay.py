"""The manifests of cluster/kuberay: no key that KubeRay or Kubernetes does not know, versions as in the lock, safe by default.

Keys are those of KubeRay's API reference (ray.io/v1, release 1.5) and of Kubernetes' pods, as far as the manifests use them.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster" / "kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))

Schema = dict[str, Any]
ANY: Schema = {}
"""Keys are free: labels, selectors, parameters."""
LEAF = None

CONTAINER: Schema = {
    **dict.fromkeys(("name", "image", "imagePullPolicy"), LEAF),
    "ports": [{"containerPort": LEAF, "name": LEAF}],
    "resources": {"requests": ANY, "limits": ANY},
    "securityContext": {"allowPrivilegeEscalation": LEAF, "capabilities": {"drop": LEAF}},
    "readinessProbe": {"httpGet": {"path": LEAF, "port": LEAF}, "periodSeconds": LEAF, "failureThreshold": LEAF},
    "volumeMounts": [{"name": LEAF, "mountPath": LEAF, "readOnly": LEAF}],
}
POD: Schema = {
    "serviceAccountName": LEAF,
    "nodeSelector": ANY,
    "terminationGracePeriodSeconds": LEAF,
    "tolerations": [{"key": LEAF, "operator": LEAF, "effect": LEAF}],
    "containers": [CONTAINER],
    "volumes": [{"name": LEAF, "emptyDir": {"medium": LEAF, "sizeLimit": LEAF}, "secret": {"secretName": LEAF, "defaultMode": LEAF}}],
}
GROUP: Schema = {"rayStartParams": ANY, "labels": ANY, "resources": ANY, "template": {"metadata": ANY, "spec": POD}}
CLUSTER: Schema = {
    **dict.fromkeys(("rayVersion", "enableInTreeAutoscaling", "suspend"), LEAF),
    "authOptions": {"mode": LEAF},
    "autoscalerOptions": {**dict.fromkeys(("version", "idleTimeoutSeconds", "upscalingMode", "imagePullPolicy"), LEAF), "resources": ANY},
    "headGroupSpec": GROUP | {"serviceType": LEAF},
    "workerGroupSpecs": [GROUP | dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"), LEAF)],
}
SPECS: dict[str, Schema] = {
    "RayCluster": CLUSTER,
    "RayJob": {
        **dict.fromkeys(("entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML"), LEAF),
        "rayClusterSpec": CLUSTER,
    },
    "RayService": {"upgradeStrategy": {"type": LEAF}, "excludeHeadPodFromServeSvc": LEAF, "serveConfigV2": LEAF, "rayClusterConfig": CLUSTER},
    "NetworkPolicy": {
        "podSelector": ANY,
        "policyTypes": LEAF,
        "ingress": [{"from": [{"podSelector": ANY, "namespaceSelector": ANY}], "ports": [{"port": LEAF, "protocol": LEAF}]}],
    },
}


def unknown(value: Any, schema: Any, path: str = "spec") -> Iterator[str]:
    """Paths of keys that the schema does not have."""
    if isinstance(schema, list):
        for i, item in enumerate(value):
            yield from unknown(item, schema[0], f"{path}[{i}]")
    elif schema:
        for key, below in value.items():
            if key not in schema:
                yield f"{path}.{key}"
            else:
                yield from unknown(below, schema[key], f"{path}.{key}")


def loaded(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return document


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "raycluster", loaded("raycluster")["spec"]
    yield "rayjob", loaded("rayjob")["spec"]["rayClusterSpec"]
    yield "rayservice", loaded("rayservice")["spec"]["rayClusterConfig"]


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_key_is_unknown_and_a_typo_is_found(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    schema = SPECS[document["kind"]]
    assert list(unknown(document["spec"], schema)) == []
    for key in document["spec"]:
        mistyped = copy.deepcopy(document["spec"])
        mistyped[key + "s"] = mistyped.pop(key)
        assert list(unknown(mistyped, schema)) == [f"spec.{key}s"]


def test_a_typo_deep_in_a_pod_is_found() -> None:
    spec = loaded("raycluster")["spec"]
    spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resource"] = {}
    assert list(unknown(spec, CLUSTER)) == ["spec.workerGroupSpecs[1].template.spec.containers[0].resource"]


def test_versions_are_those_of_the_lock() -> None:
    found = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found
    assert f"FROM rayproject/ray:{found[1]}-py311-gpu\n" in (ROOT / "cluster" / "Dockerfile").read_text()
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project
    for name, cluster in clusters():
        assert cluster["rayVersion"] == found[1], name
        assert {c["image"] for pod in pods(cluster) for c in pod["containers"]} == {f"YOUR-REGISTRY/steerlm:{project[1]}"}, name


def test_a_job_s_cluster_is_the_cluster() -> None:
    assert loaded("rayjob")["spec"]["rayClusterSpec"] == loaded("raycluster")["spec"]


def test_safe_by_default() -> None:
    for name, cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"}, name
        assert "serviceType" not in cluster["headGroupSpec"], "nothing outside the cluster may reach the head"
        for pod in pods(cluster):
            for container in pod["containers"]:
                assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
                assert "env" not in container, "no secret in a manifest"
    policy = loaded("networkpolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["ingress"]), "a rule without `from` lets everyone in"


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
            gib = [int(v["emptyDir"]["sizeLimit"].removesuffix("Gi")) for v in pod["volumes"] if v["name"] == "shared-memory"]
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
