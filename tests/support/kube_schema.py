"""A Kubernetes API server's check of a manifest, offline: a document and a JSON schema in, sentences out.

Kubernetes' own types are those of its OpenAPI, from kubernetes-validate, closed; a CRD is closed here. No KubeRay.
"""

import functools
import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import referencing
import yaml
from referencing.jsonschema import DRAFT202012

Schema = dict[str, Any]

_SHIPPED = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
RELEASES = sorted(
    (
        folder.name.removeprefix("v").removesuffix("-local-strict")
        for folder in _SHIPPED.iterdir()
        if folder.name.endswith("-strict")
    ),
    key=lambda release: [int(number) for number in release.split(".")],
)
"""Of Kubernetes, oldest first: `1.25.0` to what the lock's kubernetes-validate has."""
QUANTITY: Schema = {
    "anyOf": [
        {"type": "string", "pattern": r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"},
        {"type": "number"},
    ]
}
"""The grammar that Kubernetes documents; its OpenAPI says only "a string or a number", so `17GiB` would pass."""
RESOURCE_NAMES: Schema = {"pattern": r"^(cpu|memory|ephemeral-storage|hugepages-.+|.+/.+)$"}
"""What a container may ask for, also documented only: a standard resource, or somebody's (`nvidia.com/gpu`)."""


def kubernetes(type_: str) -> Schema:
    """A type by the end of its OpenAPI name: `api.core.v1.PodTemplateSpec`."""
    return {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.{type_}"}


def record(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": [*required], "additionalProperties": False}


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    """A whole manifest, from the schema of its `spec`."""
    return record(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
        spec=spec,
    )


def mistakes(document: Any, schema: Schema, release: str = RELEASES[-1]) -> list[str]:
    """`$.spec.replicas: 'two' is not of type 'integer'`, one an error; `release`: of Kubernetes."""
    validator = jsonschema.Draft202012Validator(schema, registry=_registry(release))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)] + [
        f"{path}: has no value" for path in _empty(document)
    ]


def closed(schema: Schema) -> Schema:
    """A CRD's schema as an API server applies it: a key that it would drop is an error, a default need not be there."""
    properties = schema.get("properties", {})
    new = schema | {"required": [key for key in schema.get("required", []) if "default" not in properties.get(key, {})]}
    if "properties" in schema:
        new["properties"] = {key: closed(below) for key, below in properties.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            new[key] = closed(schema[key])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        new.setdefault("additionalProperties", False)
    return new


def custom_resources(folder: Path) -> dict[tuple[str, str], Schema]:
    """(apiVersion, kind) → schema, for every version of every CRD in the YAML files of `folder`."""
    found = {}
    for path in sorted(folder.glob("*.y*ml")):
        # The C loader: a CRD holds whole pods, a megabyte of YAML and more.
        for document in yaml.load_all(path.read_bytes(), yaml.CSafeLoader):
            if isinstance(document, dict) and document.get("kind") == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    name, kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[name, kind] = resource(
                        name, kind, closed(version["schema"]["openAPIV3Schema"])["properties"]["spec"]
                    )
    return found


@functools.cache
def _registry(release: str) -> referencing.Registry[Any]:
    contents = json.loads((_SHIPPED / f"v{release}-local-strict" / "_definitions.json").read_text())
    types = contents["$defs"]
    types["io.k8s.apimachinery.pkg.api.resource.Quantity"] = QUANTITY
    for key in ("requests", "limits"):
        types["io.k8s.api.core.v1.ResourceRequirements"]["properties"][key]["propertyNames"] = RESOURCE_NAMES
    return referencing.Registry[Any]().with_resource(_DEFINITIONS, DRAFT202012.create_resource(contents))


def _empty(value: Any, path: str = "$") -> Iterator[str]:
    """Paths of keys with nothing after the colon, which Kubernetes takes for keys that are not there."""
    if value is None:
        yield path
    for key, below in value.items() if isinstance(value, dict) else ():
        yield from _empty(below, f"{path}.{key}")
    for i, below in enumerate(value) if isinstance(value, list) else ():
        yield from _empty(below, f"{path}[{i}]")
