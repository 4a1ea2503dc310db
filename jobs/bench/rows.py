"""What benches run on: real rows, and a random-weight predictor or policy with a tokenizer trained on their texts.

Weights do not matter for speed, and two ways must agree on any weights.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import SmallModel
from actors.modeling.tiny_llama import make_small_model
from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, to_table
from data.errors import UserError
from data.sources import read
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import log

R = TypeVar("R")
SCHEMA = shipped("helpsteer")
MEDIUM = SmallModel(
    hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=4, intermediate_size=1408, vocab_size=8192, max_tokens=2048
)
"""27.8 M parameters: small enough for a CPU, large enough that matrix products are most of the time."""
SMALL = SmallModel(
    hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=344, vocab_size=2048, max_tokens=2048
)
"""1 M parameters: the rows are most of the work, not the model."""
TINY = SmallModel(
    hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=600, max_tokens=1024
)
"""60,000 parameters: next to nothing but the rows."""
TOKENIZER_TEXTS = 4000
"""More texts change the tokenizer little and take longer than the bench."""


class NoRealRows(UserError):
    """The folder of real rows is not there."""


def real_rows(name: str, format: str, limit: int = 0, schema: AttributeSchema = SCHEMA) -> list[Conversation]:
    """The first `limit` conversations of the set `name` (0 = all), each once; raises NoRealRows."""
    folder = Path(os.environ.get("STEERLM_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (folder / name).is_dir():
        raise NoRealRows(f"no real rows at {folder / name}; set STEERLM_REAL_DATA to the folder that holds {name}")
    found: dict[str, Conversation] = {}
    for row in read(str(folder / name), format, schema):
        if isinstance(row, Conversation):
            found.setdefault(row.id, row)
            if limit and len(found) == limit:
                break
    return list(found.values())


def write_repeated(rows: Sequence[Conversation], times: int, rows_per_file: int, folder: Path) -> int:
    """The rows `times` times under new ids, as Parquet files in `folder`/rows; returns how many rows those are."""
    target = Storage(str(folder / "rows"))
    for repeated in range(times):
        for first in range(0, len(rows), rows_per_file):
            part = [replace(r, id=f"{r.id}-{repeated}") for r in rows[first : first + rows_per_file]]
            write_table(to_table(part, SCHEMA), target, f"part-{repeated:03d}-{first:07d}.parquet")
    log(f"{len(rows) * times:,} rows written")
    return len(rows) * times


def in_own_process(function: Callable[..., R], *arguments: Any) -> R:
    """The result of a function that runs in a process of its own: what it holds never counts as memory of this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        return apart.submit(function, *arguments).result()


def random_predictor(folder: str, model: SmallModel, rows: Iterable[Conversation]) -> str:
    """Make a predictor in `folder`, saved as training saves it; returns its model folder."""
    return _random(PredictorTask, folder, model, rows)


def random_policy(folder: str, model: SmallModel, rows: Iterable[Conversation]) -> str:
    """Make a policy in `folder`, saved as training saves it; returns its model folder."""
    return _random(PolicyTask, folder, model, rows)


def _random(
    task_type: type[PredictorTask] | type[PolicyTask], folder: str, model: SmallModel, rows: Iterable[Conversation]
) -> str:
    base, saved = f"{folder}/base", f"{folder}/model"
    texts = [m.content for row in rows for m in row.messages][:TOKENIZER_TEXTS]
    sizes = make_small_model(model, texts, seed=0, folder=base)
    os.makedirs(saved)
    task = task_type(base, SCHEMA, "steerlm")
    module: Any = task.build()
    task.save(module, module.state_dict(), saved)
    log(f"random-weight model: {sizes['num_parameters'] / 1e6:.1f} M parameters, vocabulary {sizes['vocab_size']:,}")
    return saved
