"""A Ray cluster of three nodes on this machine, in a process of its own.

    python tests/support/chaos_cluster.py < commands

Each line on stdin kills a worker node and starts another. It prints the cluster's address, then a line for each node
replaced. End of input ends it.
"""

import random
import sys

from ray._private.node import Node
from ray.cluster_utils import Cluster

STORE_BYTES = 150 * 2**20
STARTS = 6
"""How often a node is started until it is there: Ray waits 30 s, too short on a machine busy with what is killed."""


class Workers:
    """The worker nodes of a cluster."""

    def __init__(self, cluster: Cluster, number: int):
        self._cluster, self._rng = cluster, random.Random(0)
        self._nodes = [self._started() for _ in range(number)]

    def replace(self) -> None:
        """Kill one at random, and start another."""
        self._cluster.remove_node(self._nodes.pop(self._rng.randrange(len(self._nodes))), allow_graceful=False)
        self._nodes.append(self._started())

    def _started(self) -> Node:
        for _ in range(STARTS - 1):
            try:
                return self._cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
            except Exception as late:  # Ray raises no class of its own
                print(f"a node did not start: {late}", file=sys.stderr, flush=True)
        return self._cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    workers = Workers(cluster, 2)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        workers.replace()
        print("replaced", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
