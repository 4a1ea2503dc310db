"""Annotation of real rows while drivers, actors and nodes are killed at random: every id once, scores as unbroken.

It takes about ten minutes: `make chaos`.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.annotated_run import PRESETS, ready
from support.chaos import ChaosCluster, KilledJob, kill_at_random, until_ended
from support.tiny_run import ids_of

from data.conversation import from_table
from data.storage import Storage

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


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> str:
    """About a million random parameters, saved as training saves them."""
    from actors.modeling.regressor import PredictorTask
    from actors.modeling.settings import SmallModel
    from actors.modeling.tiny_llama import make_small_model
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[ChaosCluster]:
    started = ChaosCluster()
    yield started
    started.stop()


def _scores(rows: Storage) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    for table in rows.tables():
        for row in from_table(table):
            assert row.id not in found, f"{row.id} stands twice"
            found[row.id] = [dict(v) for v in row.predicted]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_killed_at_random_every_row_is_annotated_once(
    where: str, cluster: ChaosCluster, predictor: str, real_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = real_data / "oasst_model_eval_20k" / "samples.jsonl.gz"
    source = f"rows.sources=[{{name: model_eval, format: prompt_output, uri: {uri}, limit: {ROWS}}}]"
    settings = (source, *SETTINGS)
    root = str(tmp_path) if where == "disk" else f"{request.getfixturevalue('s3')}/chaos"
    runs = {name: f"{root}/{name}" for name in ("unbroken", "killed")}
    for storage in runs.values():
        ready(storage, predictor, *settings, preset="oasst")

    def annotation(name: str) -> KilledJob:
        words = ["jobs.annotate", str(PRESETS / "oasst.yaml"), f"storage={runs[name]}", *settings]
        rows = Storage(runs[name]) / "oasst" / "annotated" / "rows"
        return KilledJob(cluster, words, rows, b"Score", tmp_path / f"{name}.log")

    unbroken = annotation("unbroken")
    seconds = until_ended(unbroken)
    started = time.monotonic()
    killed = annotation("killed")
    counters = kill_at_random(killed, KILLS, random.Random(7))
    until_ended(killed)
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
