"""A job on a cluster of its own, whose driver, workers and nodes are killed at random and started again."""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.storage import Storage

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 240
"""Seconds without a new piece after which the test fails."""


class ChaosCluster:
    """`chaos_cluster.py` in its process; everything it starts carries `mark` in its environment."""

    def __init__(self) -> None:
        self.mark = f"STEERLM_CHAOS={os.getpid()}.{time.time_ns()}"
        name, value = self.mark.split("=")
        self.environment = os.environ | {
            name: value,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPOSITORY),
            # As inside `ray job submit`: the driver uploads no working_dir. Nodes of one machine would share the folder
            # of its files, and the first node to die deletes it.
            "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
        }
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "cluster.log"
        words = [sys.executable, "tests/support/chaos_cluster.py"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                cwd=REPOSITORY,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, f"the cluster's process has ended: {self.log.read_text()[-3000:]}"
        return line

    def replace_node(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("replace\n")
        self.process.stdin.flush()
        assert self._answer() == "replaced"

    def workers(self, name: bytes) -> list[int]:
        """Process ids of this cluster's workers whose name for themselves has this pattern."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and re.search(name, (entry / "cmdline").read_bytes())
                    and self.mark.encode() in (entry / "environ").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile, or is not ours to read
        return sorted(found)

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)
        self.folder.cleanup()


class KilledJob:
    """`python -m jobs.NAME` with these words, killed and started again, and its pieces as seen from outside.

    `rows`: where its parts go. `worker`: a pattern of the names of worker processes that may be killed.
    """

    def __init__(self, cluster: ChaosCluster, words: Sequence[str], rows: Storage, worker: bytes, log: Path):
        self.cluster, self.log, self.rows, self.worker = cluster, log, rows, worker
        self.words = [sys.executable, "-m", *words]
        self.seen: dict[str, str] = {}
        self.written_again = 0
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            environment = self.cluster.environment | {"RAY_ADDRESS": self.cluster.address}
            self.process = subprocess.Popen(
                self.words, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def look(self) -> int:
        """How many different pieces and parts have been seen so far."""
        for folder in (Storage(f"{self.rows.uri}.pieces"), self.rows):
            for path, info in folder.fs.find(folder.path, detail=True).items():
                written = str(info.get("LastModified", info.get("mtime")))
                self.written_again += path.endswith(".parquet") and self.seen.get(path, written) != written
                self.seen[path] = written
        return len(self.seen)

    def ended(self) -> bool:
        code = self.process.poll()
        assert code in (None, 0), f"the driver ended by itself with {code}: {self.log.read_text()[-3000:]}"
        return code == 0

    def wait_for_pieces(self, more: int) -> None:
        """Until so many new pieces are there, or the end."""
        wanted, since = self.look() + more, time.monotonic()
        while not self.ended() and self.look() < wanted:
            assert time.monotonic() - since < PATIENCE_S, (
                f"no new piece in {PATIENCE_S} s: {self.log.read_text()[-3000:]}"
            )
            time.sleep(0.3)

    def kill(self, kind: str, rng: random.Random) -> None:
        """Returns only when something was really killed."""
        if kind == "driver":
            self.process.kill()
            assert self.process.wait() == -signal.SIGKILL, "the driver ended before the kill"
            self.start()
        elif kind == "node":
            self.cluster.replace_node()
        else:
            os.kill(rng.choice(self._workers()), signal.SIGKILL)

    def _workers(self) -> list[int]:
        """The workers, as soon as there are any: after a restart it takes a while."""
        since = time.monotonic()
        while not (found := self.cluster.workers(self.worker)):
            assert not self.ended(), "it ended before a worker could be killed; take more rows"
            assert time.monotonic() - since < PATIENCE_S, f"no worker in {PATIENCE_S} s: {self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        return found


def until_ended(job: KilledJob) -> float:
    """Wait for the end; the seconds it took."""
    started = time.monotonic()
    while not job.ended():
        job.wait_for_pieces(1)
    return time.monotonic() - started


def kill_at_random(
    job: KilledJob, kinds: Sequence[str], rng: random.Random, pieces: int = 12, pause_s: float = 4.0
) -> Counter[str]:
    """All `kinds` in a random order, at random times; how many there were of each."""
    kills, counters = [*kinds], Counter[str]()
    rng.shuffle(kills)
    for kind in kills:
        # Two in three fall into the work, the others anywhere, also into the start.
        if rng.random() < 2 / 3:
            job.wait_for_pieces(rng.randint(1, pieces))
        time.sleep(rng.uniform(0, pause_s))
        assert not job.ended(), f"it ended after {counters.total()} kills; take more rows"
        job.kill(kind, rng)
        counters[kind] += 1
    return counters
