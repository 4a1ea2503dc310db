"""Stage `bootstrap-N/promotion`: compare the policies before and after a round on the same questions, and promote or
not.

It compares steering, the leading attribute at best settings and the variety of the answers. A policy that fell in one
of them is not promoted, and no further round follows.
"""

from data.prompts import BEST, steering_prompts
from data.stage_metrics import PolicyMeasures, PromotionMetrics
from data.storage import Storage
from jobs.evaluation.ask import ask, gap_at_best, mean_spearman, questions, tabulate
from jobs.evaluation.selection import drift
from jobs.runner.bootstrap_settings import BootstrapSettings
from jobs.runner.stage import Run, log


def decide_promotion(
    run: Run, number: int, before: str, after: str, known: PolicyMeasures | None, folder: Storage
) -> PromotionMetrics:
    """Ask the policies of the stages `before` and `after`; `known`: the former's measures, if a decision found them."""
    settings = run.preset.bootstrap
    old = known or measured_policy(run, f"promotion {number}: before", before, folder / "before")
    new = measured_policy(run, f"promotion {number}: after", after, folder / "after")
    fell = falls(old, new, settings)
    for name, found in (("before", old), ("after", new)):
        log(
            f"bootstrap {number}, {name}: steering {found.mean_spearman:.3f}, gap of {settings.leading} at best "
            f"{found.leading_gap_at_best:.2f}, distinct-2 {found.drift.distinct_2:.3f}, {found.drift.words:.1f} words"
        )
    outcome = f"NOT promoted, and no round follows: {'; '.join(fell)}" if fell else "promoted"
    log(f"bootstrap {number}: {after} is {outcome}")
    return PromotionMetrics(
        before=old,
        after=new,
        promoted=not fell,
        fell=tuple(fell),
        policy=before if fell else after,
        counts={"questions": settings.num_questions, "answers": new.drift.texts},
    )


def measured_policy(run: Run, what: str, policy: str, folder: Storage) -> PolicyMeasures:
    """The metrics of a policy: its steering, its answers at best settings, and the variety of all answers."""
    schema, settings = run.schema, run.preset.bootstrap
    asked = questions(run, settings.num_questions, for_promotion=True)
    # One seed for all rounds: the same draws for every policy. The word feeds the seeds and stays as it is.
    prompts = steering_prompts(asked, schema, schema.best(), run.preset.seed, "verdict")
    answers = ask(run, what, run.folder(policy), prompts, folder, rate=True)
    table, best = tabulate(schema, answers)
    leading = {settings.leading: best[settings.leading]} if settings.leading in best else {}
    return PolicyMeasures(
        mean_spearman=mean_spearman(table),
        spearman={name: curve.spearman for name, curve in table.items()},
        at_best_settings=best,
        leading_gap_at_best=gap_at_best(schema, leading),
        measured_by=answers.measured_by,
        drift=drift(run, answers.rows),
        best_drift=drift(run, (row for row in answers.rows if row.group == BEST)),
    )


def falls(old: PolicyMeasures, new: PolicyMeasures, settings: BootstrapSettings) -> list[str]:
    """Why a round made the policy worse, with the numbers and the setting that would let it pass; empty if it did
    not."""

    def sentence(what: str, setting: str, before: float, after: float, fall: float) -> str:
        most = getattr(settings, setting)
        if most is None or fall <= most:
            return ""
        return f"{what} {before:.3f} -> {after:.3f} (bootstrap.{setting} {most:g})"

    steering = old.mean_spearman, new.mean_spearman
    gap = old.leading_gap_at_best, new.leading_gap_at_best
    variety = old.drift.distinct_2, new.drift.distinct_2
    sentences = (
        sentence("mean Spearman", "max_steering_fall", *steering, steering[0] - steering[1]),
        sentence(f"distance of {settings.leading} from its best", "max_quality_fall", *gap, gap[1] - gap[0]),
        sentence("distinct-2", "max_diversity_fall", *variety, 1 - variety[1] / max(variety[0], 1e-9)),
    )
    return [s for s in sentences if s]
