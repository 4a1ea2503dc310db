"""Tokens, steps and minutes of a training before it starts, guessed from file sizes and this machine's speed."""

import math
from dataclasses import dataclass

import pyarrow.parquet as pq

from actors.modeling.model_shape import ModelShape
from actors.training.metrics import expected_flops
from actors.training.settings import LearnerSettings
from data.storage import Storage

BYTES_PER_TOKEN = 4.0
"""Of a conversation's columns, uncompressed; English text under a vocabulary of tens of thousands."""
SHARE_OF_PEAK = 0.4
"""Share of the speed of bare matrix products that a training is expected to reach."""


@dataclass(frozen=True)
class Estimate:
    """Of one training, over all its epochs."""

    tokens: int
    steps: int
    seconds: float | None
    """None = this machine has no device of the kind."""

    def __str__(self) -> str:
        if self.seconds is None:
            time = "time unknown on this machine"
        else:
            time = f"{self.seconds / 60:,.0f} min" if self.seconds > 90 else f"{self.seconds:,.0f} s"
        return f"about {self.tokens:,} tokens, {self.steps:,} steps, {time}"


def estimate(rows: Storage, learner: LearnerSettings, shape: ModelShape | None, has_device: bool) -> Estimate | None:
    """For a training on all of `rows`; None if there are none yet. Reads footers; times matrix products for 0.2 s."""
    files = rows.files(".parquet")
    if not files:
        return None
    fs = rows.arrow_fs
    footers = [pq.read_metadata(path, filesystem=fs) for path in files]
    size = sum(footer.row_group(i).total_byte_size for footer in footers for i in range(footer.num_row_groups))
    tokens = int(size / BYTES_PER_TOKEN) * max(1, learner.epochs)
    steps = math.ceil(tokens / (learner.pack_tokens * learner.packs_per_step)) if learner.epochs else 0
    if shape is None or not has_device:
        return Estimate(tokens, steps, None)
    # Two operations forward and four backward for each weight and token (arXiv 2001.08361); none back if frozen.
    active = shape.num_parameters - shape.inactive
    seconds = (
        (6 if learner.epochs else 2) * active * tokens / (SHARE_OF_PEAK * expected_flops(learner) * learner.num_workers)
    )
    return Estimate(tokens, steps, seconds)
