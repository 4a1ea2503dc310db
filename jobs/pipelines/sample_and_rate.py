"""Answers of a policy to many prompts, rated by the predictor in the processes that wrote them.

A process more costs seconds of imports and of loading, which is as much as a short list of prompts takes.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from data.storage import Storage
from jobs.pipelines.annotation import rating
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows
from jobs.pipelines.sample import sampler
from jobs.runner.stage import Run


class SamplerAndAnnotator:
    """The Ray Data worker: prompts in, rated answers out. Holds both models."""

    def __init__(self, sampler: Mapping[str, Any], annotator: Mapping[str, Any]):
        from actors.generation.sampler import Sampler  # both with torch
        from actors.scoring.annotator import Annotator

        self.sampler, self.annotator = Sampler(**sampler), Annotator(**annotator)

    def __call__(self, prompts: pa.Table) -> pa.Table:
        return self.annotator(self.sampler(prompts))


def sample_and_rate(
    run: Run, what: str, policy: Storage, prompts: Storage, target: Storage, temperature: float
) -> None:
    """Answer all `prompts` with `policy` into `target`, and rate the answers: the same rows as by one pool after the
    other."""
    arguments = {"sampler": sampler(run, policy, temperature), "annotator": rating(run)}
    pool = run.preset.sampling.pool
    map_rows(what, [prompts], SamplerAndAnnotator, arguments, pool, target, setting="sampling.pool")
    audit(what, [prompts], target)
