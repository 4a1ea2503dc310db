"""The manifests of cluster/kuberay, as they reach an API server. Knows no types."""

import json
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"


def loaded(name: str) -> dict[str, Any]:
    """Through JSON: what YAML's anchors share is no longer shared."""
    document: dict[str, Any] = json.loads(json.dumps(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())))
    return document
