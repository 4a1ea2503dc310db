"""Stage `bootstrap-N/selected`: which of the rated samples are trained on, their lineage, and whether they drift.

`rows/` holds the kept samples. `lineage/` has a line for every sample: round, policy, predictor, seed, requested and
predicted values, and the reason if it was dropped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.attributes import AttributeSchema, Values
from data.calibration import Calibration
from data.conversation import Conversation, from_table, to_table
from data.diversity import variety, words
from data.prompts import prompts_from
from data.selection import FINISH, Sample, decisions
from data.stage_metrics import Drift, SelectionMetrics
from data.storage import Storage
from jobs.evaluation.ask import synthetic_world
from jobs.pipelines.annotation import calibration
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import Run, StageError, log


@dataclass(frozen=True)
class SampledRow:
    """A sample as the row that it would be trained as, and the seed of its prompt."""

    row: Conversation
    """With the predicted values, unless the answer is empty and was never rated."""
    finish: str
    seed: int
    rated: bool


@dataclass(frozen=True)
class Round:
    """The folders of a round's samples, and the policy that was sampled."""

    number: int
    samples: Storage
    rated: Storage
    policy: str
    """The stage whose policy was sampled."""

    def candidates(self) -> Iterator[list[SampledRow]]:
        """One file at a time, in the order of the prompts; three folders are read side by side."""
        rated = (row for table in (self.rated / "rows").tables() for row in from_table(table))
        waiting = next(rated, None)
        for prompts, answers in zip(
            (self.samples / "prompts").tables(), (self.samples / "answers").tables(), strict=True
        ):
            found = []
            for prompt, row, finish in zip(
                prompts_from(prompts), from_table(answers), answers.column(FINISH).to_pylist(), strict=True
            ):
                is_rated = waiting is not None and waiting.id == row.id
                found.append(SampledRow(waiting if is_rated and waiting else row, finish, prompt.seed, is_rated))
                waiting = next(rated, None) if is_rated else waiting
            yield found
        assert waiting is None, f"{waiting.id} was rated but never sampled"


def select(run: Run, round: Round, folder: Storage) -> SelectionMetrics:
    """Keep or drop every sample of the round by the preset's rules; returns counts by reason, and the drift of all
    samples."""
    as_label, settings = calibration(run), run.preset.bootstrap.selection
    reasons = decisions(
        lambda: (_sample(c, as_label) for file in round.candidates() for c in file), settings, run.schema
    )
    counts: Counter[str] = Counter()
    manifest = run.manifest(round.policy)
    origin = {"round": round.number, "policy": f"{round.policy}@{manifest.fingerprint if manifest else ''}"}
    for number, file in enumerate(round.candidates()):
        decided = [(c, "empty" if not c.rated else reason) for c, reason in zip(file, reasons, strict=False)]
        name = f"part-{number:05d}.parquet"
        write_table(to_table([c.row for c, reason in decided if not reason], run.schema), folder / "rows", name)
        write_table(lineage(decided, origin, as_label, run.schema), folder / "lineage", name)
        counts.update(reason or "kept" for _, reason in decided)
    if not counts["kept"]:
        raise StageError(
            f"bootstrap {round.number}: none of {counts.total()} samples was kept ({listed(counts)}); "
            "loosen bootstrap.selection"
        )
    dropped = listed(counts - Counter(kept=counts["kept"])) or "none"
    log(f"bootstrap {round.number}: kept {counts['kept']:,} of {counts.total():,} samples; dropped: {dropped}")
    return SelectionMetrics(
        counts={"samples": counts.total(), **counts},
        drift=drift(run, (c.row for file in round.candidates() for c in file if c.rated)),
    )


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items()) if n)


def _sample(candidate: SampledRow, as_label: Calibration) -> Sample:
    row = candidate.row
    question = repr((row.system, row.messages[:-1]))
    labels = as_label(row.predicted[-1]) if candidate.rated else {}
    return Sample(question, row.messages[-1].content, candidate.finish, row.requested[-1], labels)


def lineage(
    decided: Iterable[tuple[SampledRow, str]],
    origin: Mapping[str, object],
    as_label: Calibration,
    schema: AttributeSchema,
) -> pa.Table:
    values = pa.struct([(name, pa.float32()) for name in schema.names])
    columns = [("id", pa.string()), ("round", pa.int32()), ("policy", pa.string()), ("predictor", pa.string())]
    columns += [("seed", pa.int64())]
    columns += [("requested", values), ("predicted", values), ("label", values), ("distance", pa.float32())]
    columns += [("finish", pa.string()), ("words", pa.int32()), ("kept", pa.bool_()), ("reason", pa.string())]
    rows = []
    for candidate, reason in decided:
        row, sample = candidate.row, _sample(candidate, as_label)
        predicted = row.predicted[-1] if candidate.rated else {}
        rows.append(
            {
                **{"id": row.id, **origin, "predictor": row.predictor, "seed": candidate.seed},
                **{
                    "requested": _all(row.requested[-1], schema),
                    "predicted": _all(predicted, schema),
                    "label": _all(sample.predicted, schema),
                },
                **{"distance": sample.distance if predicted else None, "finish": candidate.finish},
                **{"words": len(words(sample.answer)), "kept": not reason, "reason": reason},
            }
        )
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))


def _all(values: Values, schema: AttributeSchema) -> dict[str, float | None]:
    return {name: values.get(name) for name in schema.names}


def drift(run: Run, rows: Iterable[Conversation]) -> Drift:
    """The variety of all answers' words, and the means of requested, predicted and, if known, true values.

    Where the predicted means rise above the true ones from round to round, the policy has learned to please the
    predictor (reward hacking).
    """
    world = synthetic_world(run)
    texts: list[str] = []
    means: dict[str, list[Values]] = {kind: [] for kind in ("requested", "predicted", *(("true",) if world else ()))}
    for row in rows:
        texts.append(row.messages[-1].content)
        for kind, values in means.items():
            values.append(world.measure(row.messages) if kind == "true" and world else getattr(row, kind)[-1])
    found: dict[str, Any] = {kind: _means(values, run.schema) for kind, values in means.items()}
    return Drift(**variety(texts), **found)


def _means(values: list[Values], schema: AttributeSchema) -> dict[str, float]:
    columns = {name: [v[name] for v in values if name in v] for name in schema.names}
    return {name: round(float(np.mean(column)), 4) for name, column in columns.items() if column}
