"""A Ray cluster of three nodes on this machine, in a process of its own.

    python tests/support/chaos_cluster.py < commands

Each line on stdin kills a worker node and starts another. It prints the cluster's address, then a line for each node
replaced. End of input ends it.
"""

import random
import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 150 * 2**20


def main() -> None:
    rng = random.Random(0)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    workers = [cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(workers.pop(rng.randrange(len(workers))), allow_graceful=False)
        workers.append(cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES))
        print("replaced", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
