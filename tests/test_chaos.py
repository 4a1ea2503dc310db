"""Annotation of real rows while drivers, actors and nodes are killed at random: every id once, scores as unbroken.

It takes about ten minutes: `make chaos`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.annotated_run import PRESETS, ready
from support.tiny_run import ids_of

from data.conversation import from_table
from data.storage import Storage

REPOSITORY = Path(__file__).resolve().parent.parent
KILLS = ["driver"] * 4 + ["actor"] * 4 + ["node"] * 4
ROWS = 8000
SETTINGS = (
    "attributes=oasst",
    "bootstrap.leading=quality",
    "rows.rows_per_file=500",
    "annotate.pool.num_actors=2",
    "annotate.pool.batch_rows=32",
    "annotate.pack_tokens=1024",
    "annotate.max_tokens=512",
)
PATIENCE_S = 240
"""Seconds without a new piece after which the test fails."""


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> str:
    """About a million random parameters, saved as training saves them."""
    from actors.modeling.regressor import PredictorTask
    from actors.modeling.tiny_llama import SmallModel, make_small_model
    from data.attributes import shipped
    from data.sources import read_texts

    base, folder = (str(tmp_path_factory.mktemp(name)) for name in ("base", "predictor"))
    texts = list(read_texts(str(real_data / "oasst1_en_train_texts" / "texts.jsonl.gz"), 1000))
    small = SmallModel(
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=344,
        vocab_size=2048,
        max_tokens=512,
    )
    assert make_small_model(small, texts, 0, base)["num_parameters"] > 900_000
    task = PredictorTask(base, shipped("oasst"), "steerlm")
    module = task.build()
    task.save(module, module.state_dict(), folder)
    return folder


class Cluster:
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
        words = [sys.executable, "tests/support/chaos_cluster.py"]
        self.process = subprocess.Popen(
            words,
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, "the cluster's process has ended"
        return line

    def replace_node(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("replace\n")
        self.process.stdin.flush()
        assert self._answer() == "replaced"

    def actors(self) -> list[int]:
        """Process ids of this cluster's scoring actors, by what they call themselves."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and b"Score" in (entry / "cmdline").read_bytes()
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.stop()


class Annotation:
    """`python -m jobs.annotate` on a run's folder, killed and started again, and its pieces as seen from outside."""

    def __init__(self, cluster: Cluster, storage: str, settings: tuple[str, ...], log: Path):
        self.cluster, self.log, self.rows = cluster, log, Storage(storage) / "oasst" / "annotated" / "rows"
        self.words = [
            sys.executable,
            "-m",
            "jobs.annotate",
            str(PRESETS / "oasst.yaml"),
            f"storage={storage}",
            *settings,
        ]
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
            os.kill(rng.choice(self._actors()), signal.SIGKILL)

    def _actors(self) -> list[int]:
        """The scoring actors, as soon as there are any: after a restart it takes a while."""
        since = time.monotonic()
        while not (found := self.cluster.actors()):
            assert not self.ended(), "it ended before an actor could be killed; take more rows"
            assert time.monotonic() - since < PATIENCE_S, (
                f"no scoring actor in {PATIENCE_S} s: {self.log.read_text()[-3000:]}"
            )
            time.sleep(0.3)
        return found


def _scores(rows: Storage) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    for table in rows.tables():
        for row in from_table(table):
            assert row.id not in found, f"{row.id} stands twice"
            found[row.id] = [dict(v) for v in row.predicted]
    return found


def _until_ended(annotation: Annotation) -> float:
    """Wait for the end; the seconds it took."""
    started = time.monotonic()
    while not annotation.ended():
        annotation.wait_for_pieces(1)
    return time.monotonic() - started


def _kill_at_random(annotation: Annotation, rng: random.Random) -> Counter[str]:
    """All KILLS in a random order, at random times; how many there were of each kind."""
    kills, counters = KILLS.copy(), Counter[str]()
    rng.shuffle(kills)
    for kind in kills:
        # Two in three fall into the scoring, the others anywhere, also into the start.
        if rng.random() < 2 / 3:
            annotation.wait_for_pieces(rng.randint(1, 12))
        time.sleep(rng.uniform(0, 4))
        assert not annotation.ended(), f"it ended after {counters.total()} kills; take more rows"
        annotation.kill(kind, rng)
        counters[kind] += 1
    return counters


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_killed_at_random_every_row_is_annotated_once(
    where: str, cluster: Cluster, predictor: str, real_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = real_data / "oasst_model_eval_20k" / "samples.jsonl.gz"
    source = f"rows.sources=[{{name: model_eval, format: prompt_output, uri: {uri}, limit: {ROWS}}}]"
    settings = (source, *SETTINGS)
    root = str(tmp_path) if where == "disk" else f"{request.getfixturevalue('s3')}/chaos"
    runs = {name: f"{root}/{name}" for name in ("unbroken", "killed")}
    for storage in runs.values():
        ready(storage, predictor, *settings, preset="oasst")
    unbroken = Annotation(cluster, runs["unbroken"], settings, tmp_path / "unbroken.log")
    seconds = _until_ended(unbroken)
    started = time.monotonic()
    killed = Annotation(cluster, runs["killed"], settings, tmp_path / "killed.log")
    counters = _kill_at_random(killed, random.Random(7))
    _until_ended(killed)
    killed_seconds = time.monotonic() - started

    expected, found = _scores(unbroken.rows), _scores(killed.rows)
    assert sorted(found) == sorted(expected) == ids_of(Storage(f"{runs['killed']}/oasst/rows/rows"))
    difference = max(abs(a[n] - b[n]) for i in found for a, b in zip(found[i], expected[i], strict=True) for n in a | b)
    print(
        f"\nchaos on {where}: kills {dict(counters)} ({counters.total()}), "
        f"driver started {1 + counters['driver']} times; {len(found)} rows, 0 lost, 0 doubled; "
        f"{killed.written_again} pieces seen written again; "
        f"largest score difference {difference:.1e}; {killed_seconds:.0f} s, unbroken {seconds:.0f} s"
    )
    assert difference <= 1e-6
    assert not Storage(f"{killed.rows.uri}.pieces").exists()
