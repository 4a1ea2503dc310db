"""The memory of this machine, and what a process on its CPUs may use of it beside others like it. Knows no model."""

import os
from dataclasses import dataclass

import ray

CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"


def host_bytes() -> int:
    """Of the machine, or of the container if that has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open(CGROUP_LIMIT) as file:
            return min(machine, int(file.read()))
    except (OSError, ValueError):  # no such limit: "max", or another kind of system
        return machine


@dataclass(frozen=True)
class MachineShare:
    """What a process may use of its machine's memory."""

    num_processes: int = 1
    """Processes like it, this one included; on a cluster those of all nodes."""
    cpus: float = 0
    """CPUs that Ray sets aside for each; 0 = none, so that a node may have all of them."""
    memory_gib: float | None = None
    """None = an equal share."""

    def num_bytes(self) -> int:
        """For this process."""
        if self.memory_gib is not None:
            return int(self.memory_gib * 2**30)
        return host_bytes() // self.num_here(_node_cpus())

    def num_here(self, node_cpus: float | None) -> int:
        """Most of the processes that a machine has at a time. `node_cpus`: those of its Ray; None = it has none."""
        if not (node_cpus and self.cpus):
            return self.num_processes
        fitting = int(node_cpus / self.cpus + 1e-6)  # a third of 1 goes three times into it
        return max(1, min(self.num_processes, fitting))


ALONE = MachineShare()


def _node_cpus() -> float | None:
    if not ray.is_initialized():
        return None
    own = ray.get_runtime_context().get_node_id()
    return next((float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["NodeID"] == own), None)
