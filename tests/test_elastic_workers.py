"""Ray counts the resources of all nodes for an elastic training; we count those with its labels."""

from typing import Any

import pytest
from ray.train import ScalingConfig

from cluster import elastic_workers
from cluster.elastic_workers import LabeledElasticPolicy
from cluster.preflight import ClusterNode

TRAIN = {"role": "train"}


def _count(monkeypatch: pytest.MonkeyPatch, labels: dict[str, str] | None, *nodes: ClusterNode) -> int:
    reserved: Any = {"head": {"CPU": 2.0}}
    scaling = ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1}, label_selector=labels)
    monkeypatch.setattr(elastic_workers, "nodes_now", lambda: list(nodes))
    return LabeledElasticPolicy(scaling)._count_possible_workers(reserved)


def test_nodes_with_other_labels_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    head, node = ClusterNode({"CPU": 2.0}), ClusterNode({"CPU": 1.0}, TRAIN)
    assert _count(monkeypatch, TRAIN, head, node) == 1
    assert _count(monkeypatch, TRAIN, head, node, node) == 2
    assert _count(monkeypatch, TRAIN, head) == 0


def test_without_labels_ray_s_own_count_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _count(monkeypatch, None, ClusterNode({"CPU": 8.0})) == 2
