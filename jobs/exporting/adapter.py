"""Export what a run's policy and predictor add to their base model: low-rank adapters, heads, new tokens, and a card.

A few megabytes, which the endpoint serves together with the base (`serve.ready`). Knows no rows.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from actors.modeling.gguf_file import is_gguf, license_of
from cluster.masking import masked
from data.adapter_layout import AdapterRecord
from data.run_layout import COMPARE, TRAINING, read_record
from data.stage_metrics import PredictorMetrics, TrainingMetrics
from data.steering_metrics import PreferenceMetrics, ReportMetrics
from data.storage import Storage
from jobs.exporting.models import CARD, front_entries, learner_of, report_about, stage_of
from jobs.reporting.model_card import card
from jobs.reporting.sections_movement import movement_table
from jobs.reporting.tables import Cell, Table, as_markdown, between
from jobs.runner.stage import Metrics, Run, StageError, log
from jobs.runner.start_models import base_uri

RANK = 16
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class WantedAdapter:
    """Which policy of a run, how small, and the facts for its card."""

    round: int | None
    rank: int
    heads: bool
    """With the predictor's heads."""
    license: str
    datasets: tuple[str, ...]
    name: str
    """What the card's example serves: a name on the hub, or the folder."""


def write_adapter_folder(run: Run, wanted: WantedAdapter, folder: Storage) -> Metrics:
    """Fill `folder`; returns counts. Raises StageError if a stage is not finished, UserError if the models are more
    than adapters and heads."""
    from actors.modeling.adapter import write_adapter  # both with torch
    from actors.modeling.model_folder import local_folder

    base = run.preset.base.model
    if base is None:
        raise StageError(
            "base.model is not set, and an adapter is nothing without a base that others have; export what=policy"
        )
    stage = stage_of(run, "policy", wanted.round)
    predictor = run.folder(stage_of(run, "predictor", None)) / "model" if wanted.heads else None
    policy = run.folder(stage) / "model"
    with tempfile.TemporaryDirectory() as local:
        record = write_adapter(
            base,
            local_folder(base_uri(run)),
            local_folder(policy.uri),
            local_folder(predictor.uri) if predictor else None,
            wanted.rank,
            local,
        )
        sizes = {name: os.path.getsize(os.path.join(local, name)) for name in sorted(os.listdir(local))}
        for name in sizes:
            (folder / name).put(os.path.join(local, name))
    weights = sum(size for name, size in sizes.items() if name.endswith(WEIGHTS))
    (folder / CARD).write_bytes(_card(run, wanted, stage, record, weights).encode())
    log(
        f"{stage}: adapters of rank {record.rank} hold {record.kept:.2%} of what training changed; "
        f"{weights:,} bytes of safetensors"
    )
    return {"stage": stage, "files": len(sizes), "weights_bytes": weights, "rank": record.rank, "kept": record.kept}


# --- the card ---------------------------------------------------------------------------------------------------------

LIMITS = """\
## Limits

- The base model is small or as it is: facts are often wrong, and an attribute at its best does not mend that.
- Attributes are measured by a predictor that learned from few people's ratings, by measures of the text, or by both. A
  request for toxicity gives rude answers on purpose: lock the attribute (`toxicity`) for the public, as the profiles
  `education` and `accessibility` do.
- Answers are as good as the rows were in their languages; what no row has, no request brings.
- What was measured holds for the settings of the report: its questions, its sampling, its length of answers."""


def _card(run: Run, wanted: WantedAdapter, stage: str, record: AdapterRecord, weights_bytes: int) -> str:
    front = front_entries(run, wanted.license, wanted.datasets) | {"library_name": "peft"}
    report = report_about(run, stage)
    training = read_record(run.folder(stage) / TRAINING, TrainingMetrics)
    whole = card(run, "adapter", learner_of(run, "policy", stage), training, report, front, wanted.name)
    return "\n\n".join([whole.rstrip(), *_sections(run, record, weights_bytes, report), ""])


def _sections(run: Run, record: AdapterRecord, weights_bytes: int, report: ReportMetrics | None) -> Iterator[str]:
    if report and (moved := movement_table(report.steering, report.witnesses)):
        yield _markdown(moved)
    if preference := run.metrics(f"{COMPARE}/preference/report", PreferenceMetrics):
        share = preference.preferred
        yield (
            f"With all attributes at best, the predictor prefers the policy's answer to the base model's own on "
            f"{between(share.accuracy, share.low, share.high)} of {share.n} questions."
        )
    if record.predictor is not None and (predictor := run.metrics("predictor", PredictorMetrics)):
        rows: list[list[Cell]] = [
            [name, row.n, row.spearman, row.baselines.length.spearman] for name, row in predictor.held_out.items()
        ]
        columns = ["attribute", "answers", "Spearman", "of the length alone"]
        yield "## Predictor\n\n" + _markdown(Table("Against people, on answers that it never saw", columns, rows))
    yield "## Files\n\n" + _files(record, weights_bytes)
    yield LIMITS


def _files(record: AdapterRecord, weights_bytes: int) -> str:
    license = license_of(record.base) if is_gguf(record.base) else ""
    return (
        f"Base: {masked(record.base)}{f', license {license}' if license else ''}. Adapters of rank {record.rank} in "
        f"float16 hold {record.kept:.2%} (squared norm) of what training changed; with the heads, in float32, they are "
        f"{weights_bytes / 1e6:.1f} MB."
    )


def _markdown(table: Table) -> str:
    return "\n".join(as_markdown(table))
