"""Stage `rows` while drivers, tasks and nodes are killed at random: every row once, and parts as unbroken.

It takes about ten minutes: `make chaos`; `STEERLM_KILLS=5` kills less often, over fewer rows.
"""

import gzip
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chaos import ChaosCluster, KilledJob, kill_at_random, until_ended
from support.source_lines import DEMO
from support.tiny_run import ids_of

from data.attributes import shipped
from data.conversation import Conversation
from data.sources import read
from data.storage import Storage

NUM_KILLS = int(os.environ.get("STEERLM_KILLS", "50"))
KILLS = [*itertools.islice(itertools.cycle(("driver", "task", "driver", "task", "node")), NUM_KILLS)]
TASKS = rb"ray::.*(write_split_row|keys|find_repeats|write_parts|write_rejected)"
SETTINGS = ("rows.split_bytes=6000", "rows.rows_per_file=40", "rows.max_rejected=0.2")
LINES = min(5000, 200 * NUM_KILLS)
TIMES = 3
"""How often the real rows are there, under other prompts, and once more as they are."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ChaosCluster]:
    started = ChaosCluster()
    yield started
    started.stop()


def _write_source(real_data: Path, file: Path) -> list[str]:
    """Real rows again and again, one in ten lines broken; returns the ids of one loop over them, each once, sorted."""
    packed = real_data / "oasst_model_eval_20k" / "samples.jsonl.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")[:LINES]
    records = [json.loads(line) for line in lines if line]
    with file.open("w") as source:
        for repeated in [*range(TIMES), 0]:
            for number, record in enumerate(records):
                again = {"prompt": f"{record['prompt']} [{repeated}]", "output": record["output"]}
                source.write(json.dumps(again) + "\n")
                source.write("{broken\n" if number % 10 == 0 else "")
    rows = read(str(file), "prompt_output", shipped("lab"), "mine")
    return sorted({row.id for row in rows if isinstance(row, Conversation)})


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_killed_at_random_every_row_is_there_once(
    where: str, cluster: ChaosCluster, real_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "in.jsonl"
    expected = _write_source(real_data, file)
    source = f"rows.sources=[{{name: mine, format: prompt_output, uri: {file}}}]"
    root = str(tmp_path) if where == "disk" else f"{request.getfixturevalue('s3')}/prepare"

    def job(name: str) -> KilledJob:
        words = ["jobs.prepare", DEMO, f"storage={root}/{name}", source, *SETTINGS]
        return KilledJob(
            cluster, words, Storage(f"{root}/{name}") / "demo" / "rows" / "rows", TASKS, tmp_path / f"{name}.log"
        )

    unbroken = job("unbroken")
    seconds = until_ended(unbroken)
    started = time.monotonic()
    killed = job("killed")
    counters = kill_at_random(killed, KILLS, random.Random(3), pieces=10, pause_s=1.0)
    until_ended(killed)
    killed_seconds = time.monotonic() - started

    ids = ids_of(killed.rows)
    assert ids == expected
    for folder in ("rows", "rejected"):
        one, other = (Storage(f"{root}/{name}/demo/rows/{folder}") for name in ("unbroken", "killed"))
        assert [one.fs.cat_file(path) for path in one.files()] == [other.fs.cat_file(path) for path in other.files()]
    print(
        f"\nprepare on {where}: kills {dict(counters)} ({counters.total()}), driver started "
        f"{1 + counters['driver']} times; {len(ids)} rows, 0 lost, 0 doubled; {killed.written_again} pieces seen "
        f"written again; {killed_seconds:.0f} s, unbroken {seconds:.0f} s"
    )
    assert not Storage(f"{killed.rows.uri}.pieces").exists()
