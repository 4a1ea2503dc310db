"""Export rows of a run in the formats of other tools, with a dataset card; counts what is left out or lost.

Reads finished stages only. `data.exports` defines what each format carries.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actors.training.chosen_labels import chosen
from data.attributes import Values
from data.calibration import Calibration
from data.conversation import Conversation, from_table
from data.exports import NOT_CARRIED, RecordFormat, hub_features, left_out, line, record, with_values
from data.response_groups import groups_from, to_steerlm2
from data.storage import Storage
from jobs.pipelines.annotation import calibration
from jobs.pipelines.map_rows import write_table
from jobs.reporting.model_card import front_matter
from jobs.reporting.tables import Table, as_markdown
from jobs.runner.stage import Metrics, Run, StageError, log

ValueKind = Literal["human", "predicted", "labels"]
Format = Literal["messages", "nemo", "steerlm2", "parquet"]
SUFFIX = {"messages": "jsonl", "nemo": "jsonl", "steerlm2": "jsonl", "parquet": "parquet"}


@dataclass(frozen=True)
class WantedRows:
    """Which rows of a run, and in which format."""

    what: Literal["rows", "annotated", "selected"]
    round: int | None
    format: Format
    values: ValueKind | None
    only_rated: bool
    license: str


def write_rows(run: Run, wanted: WantedRows, folder: Storage) -> Metrics:
    """Fill `folder`; returns counts. Raises StageError if the stage is not finished, or nothing is left to write."""
    stage = _stage(run, wanted)
    if wanted.format == "steerlm2":
        return _write_groups(run, wanted, stage, folder)
    source = run.folder(stage) / "rows"
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    writer = None if wanted.format == "parquet" else _Writer(run, wanted, wanted.format)
    for number, table in enumerate(source.tables()):
        name = f"part-{number:05d}.{SUFFIX[wanted.format]}"
        if writer is None:
            write_table(table, folder, name)
            counts.update(rows=table.num_rows, parts=1)
            continue
        lines = [writer.line(row, skipped, lost, counts) for row in from_table(table)]
        if any(lines):
            (folder / name).write_bytes(b"".join(lines))
            counts["parts"] += 1
    if not counts["rows"]:
        raise StageError(
            f"nothing to export: none of the {skipped.total()} rows at {source.uri} was left "
            f"({dict(skipped) or 'there are none'})"
        )
    metrics: Metrics = {"stage": stage, "format": wanted.format, "rows": counts["rows"], "parts": counts["parts"]}
    metrics["left_out"] = dict(+skipped)
    if writer:
        metrics |= {"values": writer.values, "answers": counts["answers"], "rated_answers": counts["rated"]}
        metrics |= {"lost": dict(+lost), "not_carried": [*NOT_CARRIED]}
    (folder / "README.md").write_bytes(_card(run, wanted, metrics).encode())
    log(
        f"{stage}: {counts['rows']:,} rows as {wanted.format}; left out: {dict(+skipped) or 'none'}; "
        f"lost: {dict(+lost) or 'nothing'}"
    )
    return metrics


def _write_groups(run: Run, wanted: WantedRows, stage: str, folder: Storage) -> Metrics:
    """The prompts of a round of SteerLM 2.0 with their answers, a record each. Raises StageError for another round."""
    source = run.folder(stage) / "groups"
    if not source.exists():
        raise StageError(
            f"format is steerlm2, but {stage} has no weights of answers: the round ran with bootstrap.method "
            f"{run.preset.bootstrap.method}; set format to messages, nemo or parquet"
        )
    counts: Counter[str] = Counter()
    for number, table in enumerate(source.tables()):
        groups = list(groups_from(table))
        if groups:
            lines = b"".join(line(to_steerlm2(group, run.schema)) for group in groups)
            (folder / f"part-{number:05d}.jsonl").write_bytes(lines)
            counts.update(prompts=len(groups), responses=sum(len(g.responses) for g in groups), parts=1)
    metrics: Metrics = {"stage": stage, "format": wanted.format, **counts}
    (folder / "README.md").write_bytes(_card(run, wanted, metrics).encode())
    log(f"{stage}: {counts['prompts']:,} prompts with {counts['responses']:,} responses as {wanted.format}")
    return metrics


def _stage(run: Run, wanted: WantedRows) -> str:
    """The stage whose rows are wanted; raises StageError unless it is finished."""
    name: str = wanted.what
    if wanted.what == "selected":
        rounds = [wanted.round] if wanted.round else range(run.preset.bootstrap.rounds, 0, -1)
        names = [f"bootstrap-{number}/selected" for number in rounds]
        # A round that was not run, because the one before was not promoted, has a manifest, but no samples.
        fallback = names[0] if names else "bootstrap-1/selected"
        name = next((n for n in names if (run.folder(n) / "rows").exists()), fallback)
    if run.manifest(name) is None or not (run.folder(name) / "rows").exists():
        raise StageError(
            f"{name} is not finished in {run.root.uri}, so there are no rows to export; "
            "run `python -m jobs.run` with the same preset first"
        )
    run.require_whole(name, "the export needs")
    return name


class _Writer:
    """Rows to lines of JSONL, with the wanted values."""

    def __init__(self, run: Run, wanted: WantedRows, format: RecordFormat):
        self._schema, self._format, self._wanted = run.schema, format, wanted
        self.values: ValueKind = wanted.values or ("human" if wanted.what == "rows" else "labels")
        if self.values != "human" and wanted.what == "rows":
            raise StageError(
                f"values is {self.values}, but rows have human values only; set what=annotated, or values=human"
            )
        self._calibration = calibration(run) if self.values == "labels" else Calibration()
        self._labels = run.preset.policy.labels if self.values == "labels" else self.values

    def line(self, row: Conversation, skipped: Counter[str], lost: Counter[str], counts: Counter[str]) -> bytes:
        """The row's line; b"" for one that is left out."""
        losses: Counter[str] = Counter()
        labelled = with_values(row, self._chosen(row), self._schema, losses)
        if reason := left_out(labelled, self._wanted.only_rated):
            skipped[reason] += 1
            return b""
        written = line(record(labelled, self._schema, self._format, losses))
        lost.update(losses)
        counts.update(rows=1, answers=row.num_answers, rated=sum(map(bool, labelled.human)))
        return written

    def _chosen(self, row: Conversation) -> Sequence[Values]:
        if self.values == "labels":
            return chosen(row, self._labels, self._calibration)
        found: tuple[Values, ...] = getattr(row, self.values)
        return found or ({},) * row.num_answers


READ = """\
```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")  # this folder, or its name on the hub
```
"""


def _card(run: Run, wanted: WantedRows, metrics: Metrics) -> str:
    suffix = SUFFIX[wanted.format]
    front: Metrics = {"license": wanted.license, "task_categories": ["text-generation"], "tags": ["steerlm"]}
    front["configs"] = [{"config_name": "default", "data_files": f"*.{suffix}"}]
    if wanted.format in ("messages", "nemo"):
        front["dataset_info"] = {"features": hub_features(run.schema, wanted.format)}
    one_file = "" if wanted.format == "parquet" else f"\nTools that want one file: `cat *.{suffix} > all.{suffix}`.\n"
    attributes = [[a.name, f"{a.low} to {a.high}", a.better, a.meaning] for a in run.schema.attributes]
    lines = [front_matter(front), f"# {run.preset.run}: {metrics['stage']}", "", READ + one_file]
    lines += [*as_markdown(Table("", ["attribute", "range", "better", "meaning"], attributes)), ""]
    lines += [*as_markdown(Table("", ["metric", "value"], [[name, str(value)] for name, value in metrics.items()])), ""]
    return "\n".join(lines)
