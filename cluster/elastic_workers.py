"""How many workers an elastic training may have now: those that fit on nodes with its labels."""

from typing import Any

from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from cluster.preflight import Demand, nodes_now


class LabeledElasticPolicy(ElasticScalingPolicy):
    """Ray's own, but for nodes with other labels.

    Ray 2.60 counts the CPUs and GPUs of all nodes, and then waits for a place that no node can give: of two nodes for
    training one is lost, and the training would wait for a second worker as long as any other node has a free CPU.
    """

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        scaling = self.scaling_config
        needs, labels = scaling._resources_per_worker_not_none, scaling.label_selector or {}
        assert isinstance(labels, dict), "the same for all workers"
        sizes = scaling.min_workers, scaling.max_workers, needs.get("CPU", 0.0), needs.get("GPU", 0.0)
        demand = Demand("training", *sizes, kind="worker", labels=labels)
        count = super()._count_possible_workers(reserved_resources)
        return min(int(count), sum(demand.fit_on(node) for node in nodes_now()))
