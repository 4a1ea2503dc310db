"""The arms of the ablation: which rows each trains on, with which labels, for how long; and how each is evaluated."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from actors.training.settings import LabelSource
from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, from_table, to_table
from data.lab import LabSettings
from data.prompts import BEST, COMBINED, combined_settings, requested_prompts
from data.selection import SelectionSettings
from data.stage_metrics import PolicyMetrics
from data.steering_metrics import ArmMetrics, HeldOutGap
from data.storage import Storage
from jobs.evaluation.ask import (
    MeasuredAnswers,
    ask,
    curve_prompts,
    gap_at_best,
    mean_spearman,
    other_values,
    tabulate,
)
from jobs.evaluation.intervals import intervals
from jobs.evaluation.request_gap import request_gap
from jobs.evaluation.selection import drift
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sampling_settings
from jobs.policy_training.annotated_rows import some_rows
from jobs.policy_training.bootstrap_stages import BootstrapStages
from jobs.policy_training.conditioned_sft import train_policy
from jobs.policy_training.policy_stage import STAGE as POLICY
from jobs.policy_training.steerlm2_stages import round_stages
from jobs.runner.bootstrap_settings import BootstrapSettings
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Run, Stage, StageError
from jobs.runner.start_models import base_uri

STEERLM2 = "steerlm2"
"""The arm whose rounds are of that method."""
HELD_OUT = "held_out"
"""The group of prompts for combinations that never occur in the synthetic world's rows."""


@dataclass(frozen=True)
class Arm:
    """One arm."""

    title: str
    rows: Literal["rated", "best", "all"] = "all"
    labels: LabelSource = "predicted"


ARMS = {
    "sft": Arm("plain SFT, rated rows", "rated", "none"),
    "human": Arm("+ human labels", "rated", "human"),
    "best": Arm("+ only the best rows", "best", "human"),
    "predicted": Arm("predicted labels instead", "rated"),
    "sources": Arm("+ all sources annotated"),
    "bootstrap": Arm("+ bootstrap"),
    "longer": Arm("(control: as much more training)"),
    STEERLM2: Arm("+ SteerLM 2.0 instead"),
}

NEEDS = {"bootstrap": "sources", "longer": "bootstrap", STEERLM2: "sources"}
"""Arms that start where others end."""
PAPER = tuple(name for name in ARMS if name != STEERLM2)
"""The arms of the paper's table, and a control."""


def arm_stages(preset: Preset, name: str, seed: int) -> list[Stage]:
    """Train one arm with one seed, and evaluate it. With the run's own seed two arms are its policy and its rounds."""
    folder, shared = f"ablation/{seed}", shares_with_the_run(preset, seed)
    loop = Rounds() if shared else Rounds(f"{folder}/", f"{folder}/sources/policy")
    rounds = range(1, preset.bootstrap.rounds + 1)
    if name == "bootstrap":
        training = [stage for number in rounds for stage in BootstrapStages(loop).stages(number)]
    elif name == STEERLM2:
        training = _steerlm2_stages(preset, Rounds(f"{folder}/{name}/", loop.first))
    elif name == "longer":
        above = ("predictor", "annotated", loop.first, *map(loop.policy, rounds))
        work = partial(_train_longer, loop=loop)
        training = [Stage(f"{folder}/{name}/policy", above, _longer_settings, work, resumes=True)]
    elif name == "sources" and shared:
        training = [POLICY]
    else:
        needs, settings = ("predictor", "annotated", "base"), partial(_arm_settings, name=name)
        training = [Stage(f"{folder}/{name}/policy", needs, settings, partial(_train_arm, name=name), resumes=True)]
    trained = tuple(stage.name for stage in training)
    evaluate = partial(_report, name=name, seed=seed, trained=trained)
    report = Stage(f"{folder}/{name}/report", ("rows", "predictor", *trained), _report_settings, evaluate)
    return [_seeded(stage, seed) for stage in (*training, report)]


def _steerlm2_stages(preset: Preset, loop: Rounds) -> list[Stage]:
    """The rounds, as a preset with this method has them."""

    def of_method(stage: Stage) -> Stage:
        return replace(
            stage,
            settings=lambda preset: stage.settings(with_steerlm2(preset)),
            work=lambda run, folder: stage.work(Run(with_steerlm2(run.preset)), folder),
            inputs=lambda run: stage.inputs(Run(with_steerlm2(run.preset))),
        )

    wanted = with_steerlm2(preset)
    rounds = range(1, wanted.bootstrap.rounds + 1)
    return [of_method(stage) for number in rounds for stage in round_stages(wanted, loop, number)]


def with_steerlm2(preset: Preset) -> Preset:
    """The preset with rounds of SteerLM 2.0 that train on as many answers as its own rounds do.

    Its own mix annotated rows in; here the weighed samples come again instead, in more epochs.
    """
    settings, rate = preset.bootstrap, getattr(preset, "steerlm2_learning_rate", None)
    epochs = max(1, round(settings.learner.epochs * (1 + settings.annotated_per_sample)))
    changes = {"epochs": epochs} | ({} if rate is None else {"learning_rate": rate})
    learner = settings.learner.model_copy(update=changes)
    unread = {"annotated_per_sample", "selection", "start", "method", "learner"}
    given = settings.model_dump(exclude=unread, exclude_unset=True)
    selection = SelectionSettings(unfinished=settings.selection.unfinished)
    bootstrap = BootstrapSettings(**given, method="steerlm2", selection=selection, learner=learner)
    return preset.model_copy(update={"bootstrap": bootstrap})


def shares_with_the_run(preset: Preset, seed: int) -> bool:
    """Is what this seed trains on all sources, and the rounds after it, what the run of the preset trains anyway?"""
    return seed == preset.seed == preset.policy.learner.seed == preset.bootstrap.learner.seed


def _seeded(stage: Stage, seed: int) -> Stage:
    """The stage as a run with another seed would do it."""
    return replace(
        stage,
        settings=lambda preset: stage.settings(_with_seed(preset, seed)),
        work=lambda run, f: stage.work(Run(_with_seed(run.preset, seed)), f),
    )


def _with_seed(preset: Preset, seed: int) -> Preset:
    policy, bootstrap = (
        section.model_copy(update={"learner": section.learner.model_copy(update={"seed": seed})})
        for section in (preset.policy, preset.bootstrap)
    )
    return preset.model_copy(update={"seed": seed, "policy": policy, "bootstrap": bootstrap})


def _train_arm(run: Run, folder: Storage, name: str) -> PolicyMetrics:
    """Fine-tune from the base on the arm's rows, for as many answers as the preset's policy is trained on."""
    arm, preset = ARMS[name], run.preset
    answers, total, weights = 0.0, 0.0, preset.policy.source_weights
    for part, table in enumerate((run.folder("annotated") / "rows").tables()):
        rows = list(from_table(table))
        kept = [row for row in rows if _belongs(row, arm, preset, run.schema)]
        write_table(to_table(kept, run.schema), folder / "rows", f"part-{part:05d}.parquet")
        answers, total = (n + _answers(part, weights) for n, part in ((answers, kept), (total, rows)))
    if not answers:
        raise StageError(
            f"ablation: no row is left for {name} ({arm.title}); set arms without it, or set bootstrap.leading_at_least"
        )
    epochs = max(1, round(preset.policy.learner.epochs * total / answers))
    learner = preset.policy.learner.model_copy(update={"epochs": epochs})
    # People's ratings are no ranks among predictions: they stay as they are.
    spread = preset.policy.spread_labels and arm.labels == "predicted"
    policy = preset.policy.model_copy(update={"labels": arm.labels, "learner": learner, "spread_labels": spread})
    labelled, what = Run(preset.model_copy(update={"policy": policy})), f"ablation: {name}, seed {preset.seed}"
    return train_policy(labelled, what, [folder / "rows"], base_uri(run), learner, folder)


def _answers(rows: Sequence[Conversation], weights: Mapping[str, float]) -> float:
    """The answers of an epoch's rows."""
    return sum(row.num_answers * weights.get(row.source, 1.0) for row in rows)


def _belongs(row: Conversation, arm: Arm, preset: Preset, schema: AttributeSchema) -> bool:
    """Is the row one of the arm's? Of the best, every rating of the leading attribute reaches what a round would
    request."""
    if arm.rows == "all":
        return True
    if arm.rows == "rated":
        return any(row.human)
    lead, bound = schema[preset.bootstrap.leading], preset.bootstrap.leading_at_least
    least = lead.best if bound is None else bound
    ratings = [values[lead.name] for values in row.human if lead.name in values]
    return bool(ratings) and all(v <= least if lead.better == "lower" else v >= least for v in ratings)


def _train_longer(run: Run, folder: Storage, loop: Rounds) -> PolicyMetrics:
    """As the bootstrap rounds train: the same initial weights, as many rows and epochs, but annotated rows only."""
    wanted, policy = rows_of_rounds(run, loop), run.preset.policy
    rows = some_rows(run.folder("annotated") / "rows", wanted, f"longer/{run.preset.seed}")
    write_table(to_table(rows, run.schema), folder / "rows")
    weights = repeated(policy.source_weights, {row.source for row in rows}, wanted / len(rows))
    again = policy.model_copy(update={"source_weights": weights})
    start = (run.folder(loop.first) / "model").uri
    learner, preset = run.preset.bootstrap.learner, run.preset.model_copy(update={"policy": again})
    return train_policy(Run(preset), f"ablation: longer, seed {preset.seed}", [folder / "rows"], start, learner, folder)


def repeated(weights: Mapping[str, float], sources: Iterable[str], times: float) -> dict[str, float]:
    """Source weights that give an epoch `times` as many rows: 1.5 = every row once, and half of them once more."""
    return {source: weights.get(source, 1.0) * times for source in sorted(sources)}


def rows_of_rounds(run: Run, loop: Rounds) -> int:
    """Rows in each epoch of all rounds; a round that was not run had none."""
    stages = [loop.policy(number) for number in range(1, run.preset.bootstrap.rounds + 1)]
    return sum(found.counts["examples"] for stage in stages if (found := run.metrics(stage, PolicyMetrics)))


def _report(run: Run, folder: Storage, name: str, seed: int, trained: Sequence[str]) -> ArmMetrics:
    """Ask the arm's last policy, promoted or not, and measure its answers."""
    policies = {
        stage: found
        for stage in trained
        if stage.split("/")[-1] == "policy" and (found := run.metrics(stage, PolicyMetrics))
    }
    last = list(policies)[-1]
    asked, prompts = curve_prompts(run, "ablation")
    if ARMS[name].labels == "none":
        prompts = requested_prompts(asked, [(BEST, {})], seed, "ablation")
    else:
        held_out = [(HELD_OUT, values) for values in held_out_settings(run.preset.rows.lab, run.schema)]
        together = combined_settings(run.schema, other_values(run), run.preset.evaluate.num_combinations, seed)
        settings = [*held_out, *((COMBINED, values) for values in together)]
        prompts += requested_prompts(asked, settings, seed, "ablation")
    answers = ask(run, f"ablation: {name}, seed {seed}", run.folder(last), prompts, folder)
    table, best = tabulate(run.schema, answers)
    gap, gap_interval = request_gap(run, answers)
    return ArmMetrics(
        policy=last,
        tokens=sum(found.training.tokens for found in policies.values()),
        quality=best.get(run.preset.bootstrap.leading),
        gap_at_best=gap_at_best(run.schema, best),
        at_best_settings=best,
        measured_by=answers.measured_by,
        spearman={attribute: curve.spearman for attribute, curve in table.items()},
        mean_spearman=mean_spearman(table) if table else None,
        mean_absolute_gap=_mean([curve.mean_absolute_gap for curve in table.values()]) if table else None,
        request_gap=gap,
        held_out=_followed(answers, run.schema),
        intervals=intervals(run, answers) | ({} if None in gap_interval else {"request_gap": gap_interval}),
        drift=drift(run, (row for row in answers.rows if row.group == BEST)),
    )


def held_out_settings(lab: LabSettings, schema: AttributeSchema) -> list[Values]:
    """Every combination that the synthetic world holds out, of the attributes in its rules; the others at best."""
    found = {}
    for rule in lab.rules:
        for values in itertools.product(*(range(least, schema[name].high + 1) for name, least in rule.items())):
            combination = {**schema.best(), **dict(zip(rule, values, strict=True))}
            found[tuple(combination.values())] = combination
    return list(found.values())


def _followed(answers: MeasuredAnswers, schema: AttributeSchema) -> HeldOutGap | None:
    """How near the answers come to combinations that no row had: requested and measured means, and the mean
    distance."""
    pairs = [(row.requested[-1], answers.measure(row)) for row in answers.rows if row.group == HELD_OUT]
    if not pairs:
        return None
    distances = [abs(wanted[name] - found[name]) for wanted, found in pairs for name in wanted.keys() & found.keys()]
    requested, measured = (
        {name: _mean(values) for name in schema.names if (values := [row[name] for row in side if name in row])}
        for side in zip(*pairs, strict=True)
    )
    gap = _mean(distances)
    return HeldOutGap(answers=len(pairs), mean_absolute_gap=gap, requested=requested, measured=measured)


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _arm_settings(preset: Preset, name: str) -> object:
    lead = preset.bootstrap.model_dump(include={"leading", "leading_at_least"}) if ARMS[name].rows == "best" else {}
    return {"policy": preset.policy, "template": preset.template, "seed": preset.seed, **lead}


def _longer_settings(preset: Preset) -> object:
    rounds = {"learner": preset.bootstrap.learner, "rounds": preset.bootstrap.rounds}
    return {"policy": preset.policy, **rounds, "template": preset.template, "seed": preset.seed}


def _report_settings(preset: Preset) -> object:
    evaluation = {"evaluate": preset.evaluate, "sampling": sampling_settings(preset.sampling)}
    return evaluation | {"leading": preset.bootstrap.leading, "seed": preset.seed, "lab": preset.rows.lab}
