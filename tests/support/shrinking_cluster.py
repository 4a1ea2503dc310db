"""A training on a Ray of two worker nodes, in a process of its own, which loses one of them on the way.

    python tests/support/shrinking_cluster.py FOLDER BASE HOW        (HOW: none, killed, drained)

`killed`: a node ends without a word, after a checkpoint. `drained`: `cluster/spot.py` announces its end, and nothing
else writes a checkpoint; a while later the node ends. It prints the metrics as the last line.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster

from actors.modeling.policy import PolicyTask
from actors.training.checkpoint import complete_steps
from actors.training.examples import ExampleSpec, PolicyExamples
from actors.training.settings import LearnerSettings
from cluster.connect import worker_environment
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Example, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table

STORE_BYTES = 100 * 2**20
SPOT = Path(__file__).resolve().parents[2] / "cluster" / "spot.py"
NOTICE_S = 25


def main(folder: str, base: str, how: str) -> None:
    schema, output = shipped("lab"), Storage(folder) / "out"
    rows = list(Lab(LabSettings(num_rows=120, rated_share=1)).rows())
    maker = PolicyExamples(ExampleSpec(base, schema, "steerlm", 256), "human", Calibration(), 0.0, seed=0)
    write_table(maker(to_table(rows, schema)), examples := Storage(folder) / "examples")
    settings = LearnerSettings(
        num_workers=2, min_workers=1, zero_stage=2, precision="fp32", pack_tokens=256, max_tokens=256,
        packs_per_step=4, learning_rate=3e-3, epochs=5, labels={"role": "train"}, collective_timeout_s=120,
        checkpoint_every=0 if how == "drained" else 0.2, checkpoint_every_s=0,
    )  # fmt: skip
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    role = {"labels": {"role": "train"}, "object_store_memory": STORE_BYTES}
    nodes = [cluster.add_node(num_cpus=1, **role) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, runtime_env={"env_vars": worker_environment()})
    if how != "none":
        threading.Thread(target=lose, args=(cluster, nodes[1], output, how), daemon=True).start()
    task = PolicyTask(base, schema, "steerlm") if how == "none" else slow(base)
    metrics = fit("test", task, settings, Corpus.of(examples), output, Split(8))
    print(metrics.model_dump_json(), flush=True)
    os._exit(0)  # the cluster's processes end with this one; a shutdown would wait for the node that is gone


def slow(base: str) -> PolicyTask:
    """A task whose steps take long enough to be in the middle of when the node goes."""

    class Slow(PolicyTask):  # in a function, so that it travels by value
        def inputs(self, rows: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
            time.sleep(0.3)
            return super().inputs(rows, device, pack_tokens)

    return Slow(base, shipped("lab"), "steerlm")


def lose(cluster: Cluster, node: object, output: Storage, how: str) -> None:
    """After a checkpoint, or, where only the notice writes one, as soon as the training steps."""
    wanted = output / ("checkpoints" if how == "killed" else "tensorboard")
    while not (complete_steps(wanted) if how == "killed" else wanted.names()):
        time.sleep(0.1)
    if how == "drained":
        words = ["leave", "--address", cluster.address, "--node-id", node.node_id, "--grace-s", str(NOTICE_S)]  # type: ignore[attr-defined]
        subprocess.run([sys.executable, str(SPOT), *words], check=True)
    cluster.remove_node(node, allow_graceful=False)
    print("node removed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
