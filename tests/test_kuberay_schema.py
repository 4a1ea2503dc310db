"""The manifests of cluster/kuberay, as an API server and KubeRay would read them: right keys and types, no typo unseen.

Pods and policies are held to Kubernetes' own types, the rest to our table of KubeRay's; with the folder
STEERLM_KUBERAY_CRDS also to the CRDs themselves.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kube_schema import RELEASES, custom_resources, kubernetes, mistakes, resource
from support.kuberay_manifests import FOLDER, loaded
from support.kuberay_types import MANIFESTS

CRDS = os.environ.get("STEERLM_KUBERAY_CRDS")

SCHEMAS = MANIFESTS | {
    "networkpolicy": resource(
        "networking.k8s.io/v1", "NetworkPolicy", kubernetes("api.networking.v1.NetworkPolicySpec")
    )
}
FREE = {"labels", "matchLabels", "nodeSelector", "rayStartParams", "requests", "limits"}
"""Below these a schema takes any key, or any of a form."""

Steps = tuple[str | int, ...]


def steps(value: Any, way: Steps = ()) -> Iterator[Steps]:
    """The way to everything in a document, from the outside in."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*way, key)
        yield from steps(below, (*way, key))


def at(document: Any, way: Steps) -> Any:
    for key in way:
        document = document[key]
    return document


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
