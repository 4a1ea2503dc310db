"""Checks before a pool of actors or a group of training workers starts: what it takes, or why it would hang.

A pool that would wait for ever is refused, with the setting that fixes it: Ray itself queues what does not fit, and Ray
Data silently stalls where actors leave no CPU to read and write with (Ray issue 63513). Knows no job.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import ray

from cluster.errors import ClusterError

FREE_CPUS = 1.0
"""What reading and writing need beside the actors."""


@dataclass(frozen=True)
class ClusterNode:
    """What a node has."""

    resources: Mapping[str, float]
    """As Ray names them: CPU, GPU, ..."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpus(self) -> float:
        return self.resources.get("CPU", 0.0)

    @property
    def gpus(self) -> float:
        return self.resources.get("GPU", 0.0)


class WouldHang(ClusterError):
    """The pool can never start, or never get anything to do."""


@dataclass(frozen=True)
class Demand:
    """A pool of Ray Data actors, or a group of Ray Train workers, and the settings that size it."""

    what: str
    """Name of the pool or group, in messages."""
    min_actors: int
    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    setting: str = ""
    """The section of the preset with all this, e.g. "annotate.pool"; "" = it is no setting."""
    kind: Literal["actor", "worker"] = "actor"
    """Workers train: all of them at once or not at all, and nothing is read beside them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Only on nodes that Ray was started with these labels on."""

    @property
    def actor(self) -> str:
        return f"{self.cpus_per_actor:g} CPU" + (f" + {self.gpus_per_actor:g} GPU" if self.gpus_per_actor else "")

    @property
    def free_cpus(self) -> float:
        return FREE_CPUS if self.kind == "actor" else 0.0

    def fit_on(self, node: ClusterNode) -> int:
        """How many of the actors a node can hold."""
        if any(node.labels.get(name) != value for name, value in self.labels.items()):
            return 0
        shares = [
            node.resources.get(name, 0.0) / need
            for name, need in (("CPU", self.cpus_per_actor), ("GPU", self.gpus_per_actor))
            if need
        ]
        # Ray counts resources in ten-thousandths: 0.3 / 0.1 is 3.
        return math.floor(min(shares, default=self.max_actors) + 1e-6)

    @property
    def unlabeled(self) -> str:
        return f" or {self.setting}.labels={{}}" if self.setting else ""

    def remedy(self, name: str, value: str) -> str:
        """` or annotate.pool.num_actors=1`, if there is such a setting; `name` is num, cpus or gpus."""
        if not self.setting:
            return ""
        if name == "gpus" and self.kind == "worker":
            return f" or {self.setting}.use_gpu=false"
        return f" or {self.setting}.{f'num_{self.kind}s' if name == 'num' else f'{name}_per_{self.kind}'}={value}"


def preflight(demand: Demand) -> str:
    """What the pool will take of the cluster we are connected to, as a line for people; raises WouldHang."""
    return judged(demand, nodes_now(), may_grow())


def nodes_now() -> list[ClusterNode]:
    return [ClusterNode(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def may_grow() -> bool:
    """Does an autoscaler add nodes? Then what does not fit now may fit soon."""
    # No public call returns this; Ray Data uses the same one.
    return ray._private.state.state.get_max_resources_from_cluster_config() is not None


def judged(demand: Demand, nodes: Sequence[ClusterNode], growing: bool) -> str:
    """The same for given nodes."""
    cpus, fit = sum(node.cpus for node in nodes), sum(demand.fit_on(node) for node in nodes)
    pool = (
        "" if demand.min_actors == demand.max_actors else f"{demand.min_actors} to "
    ) + f"{demand.max_actors} {demand.kind}s"
    takes = f"{demand.what}: {pool} x {demand.actor}"
    problem = _problem(demand, nodes, cpus, fit)
    if problem and not growing:
        raise WouldHang(f"{takes}: {problem}")
    if problem:
        return f"{takes}; waiting for the autoscaler to add nodes, because for now {problem.split(';')[0]}"
    if demand.kind == "worker":
        return f"{takes}, of {cpus:g} CPUs"
    started = min(
        demand.max_actors,
        fit,
        math.floor((cpus - FREE_CPUS) / demand.cpus_per_actor + 1e-6) if demand.cpus_per_actor else fit,
    )
    some = "" if started == demand.max_actors else f" ({started} fit now)"
    return f"{takes}{some}, {cpus - started * demand.cpus_per_actor:g} of {cpus:g} CPUs left for reading and writing"


def _problem(demand: Demand, nodes: Sequence[ClusterNode], cpus: float, fit: int) -> str:
    """Why the pool would hang, and how to fix it; "" if it would not."""
    need = demand.min_actors * demand.cpus_per_actor + demand.free_cpus
    where = ", ".join(f"{name}={value}" for name, value in demand.labels.items())
    if demand.labels and not any(demand.labels.items() <= node.labels.items() for node in nodes):
        start = f"start nodes with `ray start --labels {where.replace(' ', '')}`{demand.unlabeled}"
        return f"no node has the labels {where}; {start}"
    if demand.gpus_per_actor and not any(node.gpus for node in nodes):
        return f"no node has a GPU; start Ray where there are GPUs{demand.remedy('gpus', '0')}"
    if not fit:
        largest = max(
            nodes,
            key=lambda node: (demand.labels.items() <= node.labels.items(), node.gpus, node.cpus),
            default=ClusterNode({}),
        )
        has = f"{largest.cpus:g} CPU, {largest.gpus:g} GPU"
        if demand.gpus_per_actor > max(1.0, largest.gpus):
            return (
                f"no node has {demand.gpus_per_actor:g} GPUs for one of them (the largest has {has}), and a process is "
                f"on one node; start nodes with more GPUs{demand.remedy('gpus', f'{largest.gpus:g}')}"
            )
        remedy = f"set ray.num_cpus={math.ceil(need)}{demand.remedy('cpus', '1')}"
        return f"no node can hold one of them (the largest has {has}); {remedy}"
    if fit < demand.min_actors:
        return (
            f"only {fit} of {demand.min_actors} fit; set ray.num_cpus={math.ceil(need)}{demand.remedy('num', str(fit))}"
        )
    if cpus + 1e-6 < need:
        left = cpus - demand.min_actors * demand.cpus_per_actor
        fewer = math.floor((cpus - FREE_CPUS) / demand.cpus_per_actor + 1e-6)
        remedy = demand.remedy("num", str(fewer)) if fewer >= 1 else ""
        return (
            f"they leave {left:g} of {cpus:g} CPUs for reading and writing, which need {FREE_CPUS:g}; "
            f"set ray.num_cpus={math.ceil(need)} (logical: more than the machine has is fine){remedy}"
        )
    return ""
