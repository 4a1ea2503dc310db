"""Before a pool of actors starts: what it takes of the cluster, and a refusal, with the setting that mends it, of what would wait for ever.

Knows no job. Ray itself queues what does not fit, and Ray Data stalls without a word where actors leave no CPU to read and write with
(Ray issue 63513).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

FREE_CPUS = 1.0
"""What reading and writing need beside the actors."""
Node = Mapping[str, float]
"""A node's resources, as Ray names them: CPU, GPU, ..."""


class WouldHang(ValueError):
    """The pool can never start, or never get anything to do."""


@dataclass(frozen=True)
class Demand:
    """A pool of actors, and the settings that size it."""

    what: str
    """Who asks."""
    min_actors: int
    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    setting: str = ""
    """Where a preset says all this, e.g. "annotate.pool"; "" = it is no setting."""

    @property
    def actor(self) -> str:
        return f"{self.cpus_per_actor:g} CPU" + (f" + {self.gpus_per_actor:g} GPU" if self.gpus_per_actor else "")

    def fit_on(self, node: Node) -> int:
        """How many of the actors a node can hold."""
        shares = [node.get(name, 0.0) / need for name, need in (("CPU", self.cpus_per_actor), ("GPU", self.gpus_per_actor)) if need]
        # Ray counts resources in ten-thousandths: 0.3 / 0.1 is 3.
        return math.floor(min(shares, default=self.max_actors) + 1e-6)

    def mend(self, name: str, value: str) -> str:
        """` or annotate.pool.num_actors=1`, if there is such a setting."""
        return f" or {self.setting}.{name}={value}" if self.setting else ""


def preflight(demand: Demand) -> str:
    """What the pool will take of the cluster we are connected to, as a line for people; raises WouldHang."""
    return judged(demand, [node["Resources"] for node in ray.nodes() if node["Alive"]], may_grow())


def may_grow() -> bool:
    """Does an autoscaler add nodes? Then what does not fit now may fit soon."""
    # No public call says so; Ray Data asks in the same way.
    return ray._private.state.state.get_max_resources_from_cluster_config() is not None


def judged(demand: Demand, nodes: Sequence[Node], growing: bool) -> str:
    """The same for given nodes."""
    cpus, fit = sum(node.get("CPU", 0.0) for node in nodes), sum(demand.fit_on(node) for node in nodes)
    pool = f"{demand.max_actors} actors" if demand.min_actors == demand.max_actors else f"{demand.min_actors} to {demand.max_actors} actors"
    takes = f"{demand.what}: {pool} x {demand.actor}"
    problem = _problem(demand, nodes, cpus, fit)
    if problem and not growing:
        raise WouldHang(f"{takes}: {problem}")
    if problem:
        return f"{takes}; waiting for the autoscaler to add nodes, because for now {problem.split(';')[0]}"
    started = min(demand.max_actors, fit, math.floor((cpus - FREE_CPUS) / demand.cpus_per_actor + 1e-6) if demand.cpus_per_actor else fit)
    some = "" if started == demand.max_actors else f" ({started} fit now)"
    return f"{takes}{some}, {cpus - started * demand.cpus_per_actor:g} of {cpus:g} CPUs left for reading and writing"


def _problem(demand: Demand, nodes: Sequence[Node], cpus: float, fit: int) -> str:
    """Why the pool would hang, and what mends it; "" if it would not."""
    need = demand.min_actors * demand.cpus_per_actor + FREE_CPUS
    if demand.gpus_per_actor and not any(node.get("GPU") for node in nodes):
        return f"no node has a GPU; start Ray where there are GPUs{demand.mend('gpus_per_actor', '0')}"
    if not fit:
        largest = max(nodes, key=lambda node: (demand.fit_on(node), node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
        has = f"{largest.get('CPU', 0.0):g} CPU, {largest.get('GPU', 0.0):g} GPU"
        return f"no node can hold one of them (the largest has {has}); set ray.num_cpus={math.ceil(need)}{demand.mend('cpus_per_actor', '1')}"
    if fit < demand.min_actors:
        return f"only {fit} of {demand.min_actors} fit; set ray.num_cpus={math.ceil(need)}{demand.mend('num_actors', str(fit))}"
    if cpus + 1e-6 < need:
        left = cpus - demand.min_actors * demand.cpus_per_actor
        fewer = math.floor((cpus - FREE_CPUS) / demand.cpus_per_actor + 1e-6)
        mend = demand.mend("num_actors", str(fewer)) if fewer >= 1 else ""
        return (
            f"they leave {left:g} of {cpus:g} CPUs for reading and writing, which need {FREE_CPUS:g}; "
            f"set ray.num_cpus={math.ceil(need)} (logical: more than the machine has is fine){mend}"
        )
    return ""
