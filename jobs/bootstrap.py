"""Stages `bootstrap-N/*`, step 4 of SteerLM: sample from the policy at its best settings, rate the samples, train on them.

    python -m jobs.bootstrap PRESET.yaml [key.path=value ...]

Combinations are those seen in the annotated rows at the best value of the leading attribute, drawn uniformly; the next policy is
conditioned on what the predictor says the samples *got*, not on what was asked (arXiv 2310.05344, section 3.4).
"""

import random
from collections import Counter
from collections.abc import Iterable
from functools import partial

from actors.generator import Sampling
from actors.sampler import Sampler
from data.conversation import Conversation, from_table, problem, to_table
from data.prompts import bootstrap_prompts, bootstrap_source, prompts_table, seen_combinations
from data.storage import Storage
from jobs.annotate import annotate, predictor_weights
from jobs.audit import audit
from jobs.command import main
from jobs.pipelines import map_rows, write_table
from jobs.preset import Preset, SamplingSettings
from jobs.stage import Figures, Run, Stage, say, stamp_of
from jobs.train_policy import calibration, train_policy
from jobs.training import base_uri


def policy_stage(number: int) -> str:
    """The stage that left the policy of round `number`; round 0 is step 3."""
    return f"bootstrap-{number}/policy" if number else "policy"


def sample(run: Run, what: str, policy: Storage, prompts: Storage, target: Storage, temperature: float, stamp: str = "") -> Figures:
    """Answer all `prompts` with `policy` into `target`; with a `stamp`, those that are not answered yet."""
    settings = run.preset.sampling
    arguments = {
        "policy": (policy / "model").uri,
        "schema": run.schema,
        "sampling": Sampling(max_tokens=settings.max_tokens, temperature=temperature, top_k=settings.top_k, top_p=settings.top_p),
        "max_slots": settings.max_slots,
        "dtype": settings.pool.dtype,
        "num_threads": max(1, int(settings.pool.cpus_per_actor)),
    }
    figures = map_rows(what, [prompts], Sampler, arguments, settings.pool, target, stamp, "sampling.pool")
    return figures | {"audit": audit(what, [prompts], target, stamp)}


def stages(number: int) -> list[Stage]:
    """A round as three stages, so that a crash costs at most one of them."""
    before, name = policy_stage(number - 1), f"bootstrap-{number}"
    return [
        Stage(f"{name}/samples", ("predictor", "annotated", before), _sampling_settings, partial(_samples, number=number), resumes=True),
        Stage(
            f"{name}/rated",
            (f"{name}/samples", "predictor"),
            lambda preset: {},
            partial(_rated, number=number),
            resumes=True,
            contents=predictor_weights,
        ),
        Stage(f"{name}/policy", (f"{name}/rated", "predictor", "annotated", before, "base"), _training_settings, partial(_policy, number=number), resumes=True),
    ]


def _samples(run: Run, folder: Storage, number: int) -> Figures:
    """Plan the round and sample it; answers that are no turn (empty) are kept apart and counted."""
    settings, annotated = run.preset.bootstrap, run.folder("annotated") / "rows"
    values = (v for row in _rows(annotated) for v in map(calibration(run), row.predicted) if v)
    combinations = seen_combinations(values, run.schema, settings.leading, settings.min_count, settings.leading_at_least)
    say(f"bootstrap {number}: {len(combinations)} attribute combinations seen with {settings.leading} at its best")
    prompts = bootstrap_prompts(
        _rows(annotated), combinations, settings.num_prompts, settings.samples_per_prompt, run.preset.seed + number, bootstrap_source(number)
    )
    write_table(prompts_table(prompts), folder / "prompts")
    policy, temperature = run.folder(policy_stage(number - 1)), run.preset.sampling.temperature
    figures = sample(run, f"bootstrap {number}: sample", policy, folder / "prompts", folder / "answers", temperature, stamp_of(folder))
    reasons: Counter[str] = Counter()
    kept = []
    for row in sorted(_rows(folder / "answers"), key=lambda r: r.id):
        reason = problem(row.messages)
        reasons[reason or "kept"] += 1
        if not reason:
            kept.append(row)
    write_table(to_table(kept, run.schema), folder / "rows")
    return figures | {"combinations": combinations, "counts": {"prompts": len(prompts), **reasons}}


def _rated(run: Run, folder: Storage, number: int) -> Figures:
    return annotate(run, f"bootstrap {number}: rate", run.folder(f"bootstrap-{number}/samples") / "rows", folder / "rows", stamp_of(folder))


def _policy(run: Run, folder: Storage, number: int) -> Figures:
    """Train on the rated samples, mixed with annotated rows."""
    settings = run.preset.bootstrap
    samples = run.folder(f"bootstrap-{number}/rated") / "rows"
    annotated = sorted(_rows(run.folder("annotated") / "rows"), key=lambda r: r.id)
    wanted = round(settings.annotated_per_sample * sum(1 for _ in _rows(samples)))
    mixed = random.Random(f"mix/{run.preset.seed}/{number}").sample(annotated, min(wanted, len(annotated)))
    write_table(to_table(mixed, run.schema), folder / "mixed")
    start = base_uri(run) if settings.start == "base" else (run.folder(policy_stage(number - 1)) / "model").uri
    figures = train_policy(run, f"bootstrap {number}: policy", [samples, folder / "mixed"], start, settings.learner, folder)
    figures["counts"]["annotated_mixed_in"] = len(mixed)
    return figures


def _rows(folder: Storage) -> Iterable[Conversation]:
    return (row for table in folder.tables() for row in from_table(table))


def _sampling_settings(preset: Preset) -> object:
    bootstrap = preset.bootstrap.model_dump(include={"leading", "leading_at_least", "min_count", "num_prompts", "samples_per_prompt"})
    return {"bootstrap": bootstrap, "calibrate": preset.policy.calibrate, "sampling": sampling_settings(preset.sampling), "seed": preset.seed}


def sampling_settings(settings: SamplingSettings) -> object:
    """What changes an answer: all but the pool's size and batches."""
    return {"sampling": settings.model_copy(update={"pool": None}), "dtype": settings.pool.dtype}


def _training_settings(preset: Preset) -> object:
    bootstrap = preset.bootstrap.model_dump(mode="json", include={"learner", "annotated_per_sample", "start"})
    return {"bootstrap": bootstrap, "policy": preset.policy.model_copy(update={"learner": None}), "template": preset.template, "seed": preset.seed}


if __name__ == "__main__":
    main(__doc__, lambda preset: [stage for number in range(1, preset.bootstrap.rounds + 1) for stage in stages(number)])
