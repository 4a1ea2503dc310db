"""A Ray cluster for submitted jobs, with a token, in a process of its own.

    python tests/support/job_cluster.py        (RAY_TMPDIR, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH in the environment)

The head has no CPUs, as in ray_cluster.yaml; two workers have role labels. RAY_TMPDIR is for this cluster alone: in
Ray's usual folder all clusters of a machine write one list of Prometheus targets, and one address of "the" cluster,
which jobs are then given: a Ray that another test started last.

It prints the addresses of the dashboard and of the cluster. Each line on stdin is a role: the worker node with this
role is killed, and another like it starts. End of input ends the cluster.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 200 * 2**20
ROLES = ("annotate", "train")
NODE_CPUS = 3


class JobCluster:
    """`with JobCluster(folder) as cluster:`; the token lies in `folder`."""

    def __init__(self, folder: Path):
        token = folder / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environ = own | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"  # a job calls `python`

    def __enter__(self) -> "JobCluster":
        # A short path: sockets lie in it, and their paths may have 107 characters.
        self._parent = Path(tempfile.mkdtemp(prefix="ray-"))
        self.ray_folder = self._parent / "ray"
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environ | {"RAY_TMPDIR": str(self._parent)},
        )
        self.dashboard, self.address = self._answer().split()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)
        shutil.rmtree(self._parent, ignore_errors=True)

    def replace(self, role: str) -> None:
        """Kill the node with this role and start another in its place."""
        assert self._process.stdin
        self._process.stdin.write(f"{role}\n")
        self._process.stdin.flush()
        assert self._answer() == "replaced"

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster but the one that started it."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def main() -> None:
    from ray.cluster_utils import Cluster

    every = {"object_store_memory": STORE_BYTES}
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head | every)

    numbers = itertools.count()

    def add(role: str) -> object:
        # A folder of its own for files of jobs: nodes of one machine would share it, and the first to die deletes it.
        own = {"runtime_env_dir_name": f"runtime_resources_{next(numbers)}"}
        return cluster.add_node(num_cpus=NODE_CPUS, labels={"role": role}, **own, **every)

    workers = {role: add(role) for role in ROLES}
    cluster.wait_for_nodes()
    print(f"http://{cluster.head_node.webui_url} {cluster.address}", flush=True)
    for line in sys.stdin:
        role = line.strip()
        cluster.remove_node(workers[role], allow_graceful=False)
        workers[role] = add(role)
        print("replaced", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
