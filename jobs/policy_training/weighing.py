"""Stage `bootstrap-N/selected` of SteerLM 2.0: three log-probabilities of every answer, and the weights among them.

`groups/` has a row for each prompt whose answers can all be weighed, `rows/` their answers. `lineage/` has a line for
every sample, with its log-probabilities and its weight, or the reason if its prompt was left out.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.attribute_likelihood import divergence, effective, log_labels
from data.attributes import AttributeSchema
from data.calibration import Calibration
from data.conversation import to_table
from data.response_groups import LOGARITHMS, Response, ResponseGroup, groups_table, response_group
from data.selection import CUT_OFF
from data.stage_metrics import GroupMetrics, SelectionMetrics
from data.storage import Storage
from jobs.evaluation.selection import Round, SampledRow, drift, lineage, listed
from jobs.pipelines.annotation import calibration
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.runner.stage import Run, StageError, fingerprint_of, log

INCOMPLETE = "incomplete"
"""The reason of a sample that could be weighed, while another answer to its prompt could not."""


@dataclass(frozen=True)
class Weighable:
    """A sample and its log-probabilities; `reason` says why it has none."""

    candidate: SampledRow
    reason: str
    response: Response | None = None


def weigh(run: Run, round: Round, free: Storage, folder: Storage) -> SelectionMetrics:
    """Weigh all samples of the round; `free` is the folder of the policy that gives log P(y|x)."""
    rows, what, fingerprint = round.rated / "rows", f"bootstrap {round.number}", fingerprint_of(folder)
    own, others = folder / "log_policy", folder / "log_free"
    log_likelihoods(run, f"{what}: log Q'(y|a,x)", run.folder(round.policy), rows, own, True, fingerprint)
    log_likelihoods(run, f"{what}: log P(y|x)", free, rows, others, False, fingerprint)
    counts, targets = Counter[str](), list[np.ndarray]()
    manifest, as_label, size = run.manifest(round.policy), calibration(run), run.preset.bootstrap.samples_per_prompt
    origin = {"round": round.number, "policy": f"{round.policy}@{manifest.fingerprint if manifest else ''}"}
    samples = _weighable(run, round, (own, others), as_label)
    for number, file in enumerate(samples):
        groups = [file[start : start + size] for start in range(0, len(file), size)]
        decided = [decided for group in groups for decided in together(group)]
        found = [group_of(group) for group in groups if not any(s.reason for s in group)]
        name = f"part-{number:05d}.parquet"
        write_table(to_table([s.candidate.row for s in decided if not s.reason], run.schema), folder / "rows", name)
        write_table(groups_table(found), folder / "groups", name)
        write_table(_lineage(decided, found, origin, as_label, run.schema), folder / "lineage", name)
        counts.update(s.reason or "kept" for s in decided)
        targets += [group.log_target for group in found]
    return SelectionMetrics(
        counts={"samples": counts.total(), **counts},
        drift=drift(run, (c.row for file in round.candidates() for c in file if c.rated)),
        groups=_summary(what, targets, counts, size),
    )


def log_likelihoods(
    run: Run, what: str, policy: Storage, rows: Storage, target: Storage, labels: bool, fingerprint: str
) -> None:
    """log P of the last answer of each of the `rows` under `policy`, asked for what the answer was, or for nothing."""
    from actors.scoring.log_likelihood import LogLikelihood  # with torch

    pool, learner = run.preset.sampling.pool, run.preset.bootstrap.learner
    arguments = {
        "policy": (policy / "model").uri,
        "schema": run.schema,
        "labels": labels,
        "pack_tokens": learner.pack_tokens,
        "max_tokens": learner.max_tokens,
        "dtype": pool.dtype,
        "num_threads": max(1, int(pool.cpus_per_actor)),
    }
    map_rows(what, [rows], LogLikelihood, arguments, pool, target, fingerprint, "sampling.pool")
    audit(what, [rows], target, fingerprint)


def _weighable(
    run: Run, round: Round, likelihoods: Sequence[Storage], as_label: Calibration
) -> Iterator[list[Weighable]]:
    """The samples of each file, in the order of the prompts."""
    own, free = (
        (row for table in folder.tables() for row in table.select(["id", "log_likelihood"]).to_pylist())
        for folder in likelihoods
    )
    unfinished = run.preset.bootstrap.selection.unfinished
    for file in round.candidates():
        found = []
        for candidate in file:
            if not candidate.rated:
                found.append(Weighable(candidate, "empty"))
                continue
            pair = next(own), next(free)
            assert {row["id"] for row in pair} == {candidate.row.id}, "both passes keep the order of the rated rows"
            log_policy, log_free = (row["log_likelihood"] for row in pair)
            found.append(weighable(run.schema, candidate, log_policy, log_free, as_label, unfinished))
        yield found


def weighable(
    schema: AttributeSchema,
    candidate: SampledRow,
    log_policy: float | None,
    log_free: float | None,
    as_label: Calibration,
    unfinished: bool,
) -> Weighable:
    """A rated sample with its log-probabilities, or why it has none."""
    row = candidate.row
    if candidate.finish == CUT_OFF and not unfinished:
        return Weighable(candidate, "unfinished")
    if log_policy is None or log_free is None:
        return Weighable(candidate, "over_long")
    labels = log_labels(schema, row.requested[-1], as_label(row.predicted[-1]))
    if math.isnan(labels):
        return Weighable(candidate, "unrated")
    return Weighable(candidate, "", Response(row.messages[-1].content, labels, log_free, log_policy))


def together(group: Sequence[Weighable]) -> list[Weighable]:
    """The same, with a reason for all if one has a reason: all prompts have the same number of answers."""
    if not any(sample.reason for sample in group):
        return list(group)
    return [sample if sample.reason else Weighable(sample.candidate, INCOMPLETE) for sample in group]


def group_of(samples: Sequence[Weighable]) -> ResponseGroup:
    row = samples[0].candidate.row
    assert {s.candidate.row.messages[:-1] for s in samples} == {row.messages[:-1]}, "a group answers one prompt"
    responses = [sample.response for sample in samples if sample.response]
    return response_group(row.source, row.group, row.system, row.messages[:-1], row.requested[-1], responses)


def _lineage(
    decided: Sequence[Weighable],
    groups: Sequence[ResponseGroup],
    origin: dict[str, object],
    as_label: Calibration,
    schema: AttributeSchema,
) -> pa.Table:
    """As for other rounds, and the weight with what it was made of."""
    table = lineage([(s.candidate, s.reason) for s in decided], origin, as_label, schema)
    weights = iter(np.exp(np.concatenate([np.zeros(0), *(g.log_target for g in groups)])).tolist())
    for name in LOGARITHMS:
        column = [getattr(s.response, name) if s.response else None for s in decided]
        table = table.append_column(name, pa.array(column, pa.float64()))
    return table.append_column("weight", pa.array([None if s.reason else next(weights) for s in decided], pa.float64()))


def _summary(what: str, targets: Sequence[np.ndarray], counts: Counter[str], size: int) -> GroupMetrics:
    """`targets`: log w' of each prompt's answers."""
    dropped = listed(counts - Counter(kept=counts["kept"])) or "none"
    if not targets:
        raise StageError(
            f"{what}: of no prompt can all {size} answers be weighed ({dropped}); raise sampling.max_tokens or "
            "bootstrap.learner.max_tokens, or set bootstrap.selection.unfinished"
        )
    alike = np.full(size, -math.log(size))
    kl = round(float(np.mean([divergence(target, alike) for target in targets])), 4)
    number = round(float(np.mean([effective(target) for target in targets])), 3)
    log(
        f"{what}: weights for the {size} answers to each of {len(targets):,} prompts, which stand for {number:.2f} "
        f"answers; KL(w'||b') before training {kl:.3f} nats; dropped: {dropped}"
    )
    return GroupMetrics(prompts=len(targets), kl=kl, effective=number)
