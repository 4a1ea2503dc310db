"""The validator itself: Kubernetes' own types, and a small CRD like KubeRay's, closed as an API server treats it."""

from pathlib import Path
from typing import Any

import pytest
from support.kube_schema import QUANTITY, RELEASES, closed, custom_resources, kubernetes, mistakes

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ponds.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: Pond, plural: ponds}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [depth, owner]
              properties:
                depth: {type: integer, format: int32, default: 2}
                owner: {type: string, enum: [town, farm]}
                port: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
                signs: {type: object, additionalProperties: {type: string}}
                notes: {type: object, x-kubernetes-preserve-unknown-fields: true}
                nothing: {type: object}
                fish:
                  type: array
                  items:
                    type: object
                    required: [name]
                    properties:
                      name: {type: string}
                      count: {type: integer, minimum: 1}
    - name: v1beta1
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object}}}}
"""


@pytest.fixture
def pond(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "example.org_ponds.yaml").write_text(CRD)
    (tmp_path / "other.yaml").write_text("# nothing\n---\nkind: ConfigMap\n---\n- a list\n")
    schemas = custom_resources(tmp_path)
    assert schemas.keys() == {("example.org/v1", "Pond"), ("example.org/v1beta1", "Pond")}
    return schemas["example.org/v1", "Pond"]


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "example.org/v1",
        "kind": "Pond",
        "metadata": {"name": "old", "labels": {"any": "key"}},
        "spec": {"owner": "town"} | spec,
    }


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"depth": 3, "port": 80, "fish": [{"name": "carp", "count": 7}, {"name": "tench"}]},
        {"port": "http", "signs": {"any": "text"}, "notes": {"any": ["thing", 1]}, "nothing": {}},
    ],
)
def test_a_crd_takes_what_it_describes(pond: dict[str, Any], spec: dict[str, Any]) -> None:
    assert mistakes(manifest(**spec), pond) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"dept": 3}, "$.spec: Additional properties are not allowed ('dept' was unexpected)"),
        (
            {"fish": [{"name": "carp"}, {"name": "tench", "weight": 2}]},
            "$.spec.fish[1]: Additional properties are not allowed ('weight' was unexpected)",
        ),
        ({"nothing": {"at": "all"}}, "$.spec.nothing: Additional properties are not allowed ('at' was unexpected)"),
        ({"depth": "two"}, "$.spec.depth: 'two' is not of type 'integer'"),
        ({"depth": True}, "$.spec.depth: True is not of type 'integer'"),
        ({"owner": "king"}, "$.spec.owner: 'king' is not one of ['town', 'farm']"),
        ({"fish": [{"count": 7}]}, "$.spec.fish[0]: 'name' is a required property"),
        ({"fish": [{"name": "carp", "count": 0}]}, "$.spec.fish[0].count: 0 is less than the minimum of 1"),
        ({"port": 8.5}, "$.spec.port: 8.5 is not valid under any of the given schemas"),
        ({"signs": {"deep": 3}}, "$.spec.signs.deep: 3 is not of type 'string'"),
        ({"notes": {"any": None}}, "$.spec.notes.any: has no value"),
    ],
)
def test_a_crd_refuses_what_an_api_server_would_drop_or_refuse(
    pond: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    assert mistakes(manifest(**spec), pond) == [said]


def test_the_whole_of_a_manifest_is_checked(pond: dict[str, Any]) -> None:
    assert mistakes(manifest() | {"sepc": {}}, pond) == [
        "$: Additional properties are not allowed ('sepc' was unexpected)"
    ]
    assert mistakes(manifest() | {"kind": "Lake"}, pond) == ["$.kind: 'Pond' was expected"]
    assert mistakes(manifest() | {"metadata": {"nam": "old"}}, pond) == [
        "$.metadata: Additional properties are not allowed ('nam' was unexpected)"
    ]
    assert mistakes({"apiVersion": "example.org/v1", "kind": "Pond", "metadata": {}}, pond) == [
        "$: 'spec' is a required property"
    ]


def test_closing_leaves_the_schema_as_it_was() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "object", "default": {}}}}
    assert closed(schema)["required"] == []
    assert schema == {"type": "object", "required": ["a"], "properties": {"a": {"type": "object", "default": {}}}}


def test_releases_are_in_order_and_each_has_pods() -> None:
    assert RELEASES.index("1.30.0") > RELEASES.index("1.29.0") > RELEASES.index("1.28.0")
    pod = {"spec": {"containers": [{"name": "one", "imag": "busybox"}]}}
    for release in RELEASES:
        [said] = mistakes(pod, kubernetes("api.core.v1.PodTemplateSpec"), release)
        assert said == "$.spec.containers[0]: Additional properties are not allowed ('imag' was unexpected)"


@pytest.mark.parametrize("good", ["14", "17Gi", "1000Gi", "500m", "0.5", ".5", "1e3", "1E", "5M", 4, 0.5])
def test_quantities(good: str | float) -> None:
    assert mistakes(good, QUANTITY) == []


@pytest.mark.parametrize("bad", ["17GiB", "17 Gi", "17gb", "two", "", "Gi", "1Ki2", [1]])
def test_what_is_no_quantity(bad: Any) -> None:
    assert len(mistakes(bad, QUANTITY)) == 1
