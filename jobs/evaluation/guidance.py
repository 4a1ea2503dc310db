"""What guidance gains and costs: the report's questions, answered with each strength of `evaluate.guidance`.

The prompts and their seeds are those of the report, so that at 1 the answers are the report's own, and lines differ by
the guidance alone.
"""

import numpy as np

from data.diversity import variety
from data.prompts import BEST, prompts_table
from data.stage_metrics import SamplingMetrics
from data.steering_metrics import GuidanceMetrics
from data.storage import Storage
from jobs.evaluation.ask import MeasuredAnswers, curve_prompts, mean_spearman, measurable, rows_by_id, tabulate
from jobs.pipelines.annotation import annotate
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import GuidedBy, sample
from jobs.runner.stage import Run, log


def guidance_metrics(run: Run, policy: Storage, folder: Storage) -> tuple[GuidanceMetrics, ...]:
    """A line for each strength, in the order of the setting; all files lie in `folder`."""
    settings = run.preset.evaluate
    if not settings.guidance:
        return ()
    _, prompts = curve_prompts(run, "evaluate")
    write_table(prompts_table(prompts), folder / "prompts")
    found = []
    for guidance in settings.guidance:
        what, part = f"guidance {guidance:g}", folder / f"{guidance:g}"
        guided = GuidedBy(guidance, settings.guidance_from)
        places = folder / "prompts", part / "answers"
        sampled = sample(run, f"{what}: sample", policy, *places, settings.temperature, guided=guided)
        # In a pass of its own, so that the time of the answers is known.
        annotate(run, f"{what}: rate", [part / "answers"], part / "rated")
        found.append(_line(run, guidance, sampled, measurable(run, rows_by_id(part / "rated"))))
        log(f"evaluate: {what}: slope {found[-1].slope}, gap {found[-1].gap}, {found[-1].tokens_per_s} tokens/s")
    return tuple(found)


def _line(run: Run, guidance: float, sampled: SamplingMetrics, answers: MeasuredAnswers) -> GuidanceMetrics:
    schema, leading = run.schema, run.preset.bootstrap.leading
    table, best = tabulate(schema, answers)
    slopes = {name: curve.slope for name, curve in table.items() if curve.slope is not None}
    varied = [
        (row.requested[-1][row.group], v[row.group]) for row, v in answers.measured if v.get(row.group) is not None
    ]
    quality = [row.predicted[-1][leading] for row in answers.rows if row.group == BEST and leading in row.predicted[-1]]
    words = variety(row.messages[-1].content for row in answers.rows)
    return GuidanceMetrics(
        guidance=guidance,
        slopes=slopes,
        slope=_mean(list(slopes.values())),
        spearman=mean_spearman(table),
        gap=_mean([abs(requested - measured) for requested, measured in varied]),
        others_move=_mean([curve.mean_absolute_gap for curve in table.values()]),
        distinct_2=words["distinct_2"],
        words=words["words"],
        quality=_mean(quality),
        at_best=best.get(leading),
        tokens_per_s=_rate(sampled.tokens, sampled.actor_seconds),
        tokens_per_cpu_s=_rate(sampled.tokens, sampled.cpu_seconds),
        answers=len(answers.rows),
        cut_off=sampled.cut_off,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 1) if seconds else None


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
