"""One pool that samples and rates leaves the very rows of two pools, and is used where its processes may hold both."""

from pathlib import Path

import pyarrow as pa
import pytest
from support.annotated_run import PRESETS, ready

from cluster.settings.load import load
from data.conversation import Message, from_table
from data.prompts import prompts_table, steering_prompts
from data.storage import Storage
from jobs.pipelines.annotation import annotate
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample
from jobs.pipelines.sample_and_rate import sample_and_rate
from jobs.runner.needs import one_pool
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

SMALL = ("rows.lab.num_rows=40", "sampling.max_tokens=8", "sampling.pool.batch_rows=16", "annotate.pool.batch_rows=16")
GPU = ("sampling.pool.gpus_per_actor=1", "annotate.pool.gpus_per_actor=1")


def _table(folder: Storage) -> pa.Table:
    return pa.concat_tables(folder.tables())


def _prompts(run: Run, folder: Storage) -> None:
    questions = [[Message("user", f"How do I bake bread, try {number}?")] for number in range(2)]
    asked = steering_prompts(questions, run.schema, run.schema.best(), 0, "test")
    write_table(prompts_table(asked), folder)


@pytest.mark.slow
@pytest.mark.ray
def test_one_pool_leaves_the_rows_of_two(
    ray_cluster: object, tiny_predictor: str, tiny_policy: str, tmp_path: Path
) -> None:
    run, folder = ready(str(tmp_path / "run"), tiny_predictor, *SMALL), Storage(str(tmp_path))
    (folder / "policy" / "model").upload(tiny_policy)
    prompts, policy = folder / "prompts", folder / "policy"
    _prompts(run, prompts)
    sample(run, "two: sample", policy, prompts, folder / "answers", 0.8)
    annotate(run, "two: rate", [folder / "answers"], folder / "two")
    sample_and_rate(run, "one", policy, prompts, folder / "one", 0.8)
    one, two = _table(folder / "one"), _table(folder / "two")
    assert one.num_rows == 52
    assert all(row.predicted[-1] for row in from_table(one))
    assert str(one.to_pylist()) == str(two.to_pylist()), "as texts, for a NaN equals no other"


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ((), True),
        (("sampling.pool.batch_rows=64",), True),
        (("sampling.pool.num_actors=1",), False),
        (("annotate.pool.dtype=bfloat16",), False),
        (GPU, False),
        (("annotate.tensor_parallel=2", "annotate.pool.cpus_per_actor=2", "sampling.pool.cpus_per_actor=2"), False),
    ],
)
def test_two_pools_where_they_differ_or_take_gpus(settings: tuple[str, ...], may: bool, tmp_path: Path) -> None:
    preset = load(Preset, str(PRESETS / "demo.yaml"), [f"storage={tmp_path}", *settings])
    assert one_pool(preset) is may
