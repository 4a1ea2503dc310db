"""The rungs of the ablation: which rows each trains on, conditioned on what, for how long; and how each is asked and measured."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from actors.training.examples import LabelSource
from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, from_table, to_table
from data.lab import LabSettings
from data.prompts import BEST, drawn, requested_prompts, steering_prompts
from data.storage import Storage
from jobs.evaluation.ask import MeasuredAnswers, ask, gap_at_best, mean_spearman, questions, tabulate
from jobs.evaluation.selection import drift
from jobs.pipelines.fit import base_uri
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sampling_settings
from jobs.policy_training.bootstrap_stages import BootstrapStages
from jobs.policy_training.conditioned_sft import train_policy
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Metrics, Run, Stage, StageError

HELD_OUT = "held_out"
"""The group of prompts that ask for what never occurs together in the laboratory's rows."""


@dataclass(frozen=True)
class Arm:
    """One rung."""

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
}

NEEDS = {"bootstrap": "sources", "longer": "bootstrap"}
"""Rungs that go on where others end."""


def arm_stages(preset: Preset, name: str, seed: int) -> list[Stage]:
    """Train one rung with one seed, ask it and measure it."""
    folder, first = f"ablation/{seed}", f"ablation/{seed}/sources/policy"
    loop = Rounds(f"{folder}/", first)
    rounds = range(1, preset.bootstrap.rounds + 1)
    if name == "bootstrap":
        training = [stage for number in rounds for stage in BootstrapStages(loop).stages(number)]
    elif name == "longer":
        above = ("predictor", "annotated", first, *map(loop.policy, rounds))
        training = [
            Stage(f"{folder}/{name}/policy", above, _longer_settings, partial(_train_longer, loop=loop), resumes=True)
        ]
    else:
        needs = ("predictor", "annotated", "base")
        training = [
            Stage(
                f"{folder}/{name}/policy",
                needs,
                partial(_arm_settings, name=name),
                partial(_train_arm, name=name),
                resumes=True,
            )
        ]
    trained = tuple(stage.name for stage in training)
    report = Stage(
        f"{folder}/{name}/report",
        ("rows", "predictor", *trained),
        _report_settings,
        partial(_report, name=name, seed=seed, trained=trained),
    )
    return [_seeded(stage, seed) for stage in (*training, report)]


def _seeded(stage: Stage, seed: int) -> Stage:
    """The stage as a run with another seed would do it."""
    return replace(
        stage,
        settings=lambda preset: stage.settings(_with_seed(preset, seed)),
        work=lambda run, f: stage.work(Run(_with_seed(run.preset, seed)), f),
    )


def _with_seed(preset: Preset, seed: int) -> Preset:
    policy = preset.policy.model_copy(update={"learner": preset.policy.learner.model_copy(update={"seed": seed})})
    bootstrap = preset.bootstrap.model_copy(
        update={"learner": preset.bootstrap.learner.model_copy(update={"seed": seed})}
    )
    return preset.model_copy(update={"seed": seed, "policy": policy, "bootstrap": bootstrap})


def _train_arm(run: Run, folder: Storage, name: str) -> Metrics:
    """Fine-tune from the base on the arm's rows, for as many answers as the preset's policy is trained on."""
    arm, preset = ARMS[name], run.preset
    answers, total = 0, 0
    for part, table in enumerate((run.folder("annotated") / "rows").tables()):
        rows = list(from_table(table))
        kept = [row for row in rows if _belongs(row, arm, preset, run.schema)]
        write_table(to_table(kept, run.schema), folder / "rows", f"part-{part:05d}.parquet")
        answers, total = answers + sum(r.num_answers for r in kept), total + sum(r.num_answers for r in rows)
    if not answers:
        raise StageError(
            f"ablation: no row is left for {name} ({arm.title}); set arms without it, or set bootstrap.leading_at_least"
        )
    learner = preset.policy.learner.model_copy(
        update={"epochs": max(1, round(preset.policy.learner.epochs * total / answers))}
    )
    labelled = Run(
        preset.model_copy(
            update={"policy": preset.policy.model_copy(update={"labels": arm.labels, "learner": learner})}
        )
    )
    return train_policy(
        labelled, f"ablation: {name}, seed {preset.seed}", [folder / "rows"], base_uri(run), learner, folder
    )


def _belongs(row: Conversation, arm: Arm, preset: Preset, schema: AttributeSchema) -> bool:
    """Is the row one of the arm's? The best are those of which every rating of the leading attribute is as good as a round would ask for."""
    if arm.rows == "all":
        return True
    if arm.rows == "rated":
        return any(row.human)
    lead, bound = schema[preset.bootstrap.leading], preset.bootstrap.leading_at_least
    least = lead.best if bound is None else bound
    ratings = [values[lead.name] for values in row.human if lead.name in values]
    return bool(ratings) and all(v <= least if lead.better == "lower" else v >= least for v in ratings)


def _train_longer(run: Run, folder: Storage, loop: Rounds) -> Metrics:
    """As the bootstrap rounds train, from the same weights and for as many rows and epochs, but on annotated rows only."""
    wanted, policy = rows_of_rounds(run, loop), run.preset.policy
    rows = drawn(
        (row for table in (run.folder("annotated") / "rows").tables() for row in from_table(table)),
        wanted,
        f"longer/{run.preset.seed}",
    )
    write_table(to_table(rows, run.schema), folder / "rows")
    again = policy.model_copy(
        update={"source_weights": repeated(policy.source_weights, {row.source for row in rows}, wanted / len(rows))}
    )
    start = (run.folder(loop.first) / "model").uri
    learner, preset = run.preset.bootstrap.learner, run.preset.model_copy(update={"policy": again})
    return train_policy(Run(preset), f"ablation: longer, seed {preset.seed}", [folder / "rows"], start, learner, folder)


def repeated(weights: Mapping[str, float], sources: Iterable[str], times: float) -> dict[str, float]:
    """Source weights with which an epoch has `times` as many rows: 1.5 = every row once, and half of them once more."""
    return {source: weights.get(source, 1.0) * times for source in sorted(sources)}


def rows_of_rounds(run: Run, loop: Rounds) -> int:
    """Rows that the rounds had to train on in each of their epochs; a round that was not run had none."""
    metrics = [
        (run.manifest(loop.policy(number)) or {})["metrics"] for number in range(1, run.preset.bootstrap.rounds + 1)
    ]
    return sum(found["counts"]["examples"] for found in metrics if "training" in found)


def _report(run: Run, folder: Storage, name: str, seed: int, trained: Sequence[str]) -> Metrics:
    """Ask the rung's last policy, promoted or not, and measure what it says."""
    policies = [
        stage for stage in trained if stage.endswith("/policy") and "training" in (run.manifest(stage) or {})["metrics"]
    ]
    asked = questions(run, run.preset.evaluate.num_questions)
    if ARMS[name].labels == "none":
        prompts = requested_prompts(asked, [(BEST, {})], seed, "ablation")
    else:
        held_out: list[tuple[str, Values]] = [
            (HELD_OUT, values) for values in held_out_settings(run.preset.rows.lab, run.schema)
        ]
        prompts = steering_prompts(asked, run.schema, run.schema.best(), seed, "ablation") + requested_prompts(
            asked, held_out, seed, "ablation"
        )
    answers = ask(run, f"ablation: {name}, seed {seed}", run.folder(policies[-1]), prompts, folder)
    table, best = tabulate(run.schema, answers)
    leading = run.preset.bootstrap.leading
    return {
        **{
            "policy": policies[-1],
            "tokens": sum((run.manifest(stage) or {})["metrics"]["training"]["tokens"] for stage in policies),
        },
        **{
            "quality": best.get(leading),
            "gap_at_best": gap_at_best(run.schema, best),
            "at_best_settings": best,
            "measured_by": answers.measured_by,
        },
        **{
            "spearman": {dial: row["spearman"] for dial, row in table.items()},
            "mean_spearman": mean_spearman(table) if table else None,
        },
        "mean_absolute_gap": round(float(np.mean([row["mean_absolute_gap"] for row in table.values()])), 4)
        if table
        else None,
        "held_out": _followed(answers, run.schema),
        "drift": drift(run, (row for row in answers.rows if row.group == BEST)),
    }


def held_out_settings(lab: LabSettings, schema: AttributeSchema) -> list[Values]:
    """Every combination that the laboratory holds out, of the attributes that its rules name; the others at best."""
    found = {}
    for rule in lab.rules:
        for values in itertools.product(*(range(least, schema[name].high + 1) for name, least in rule.items())):
            combination = {**schema.best(), **dict(zip(rule, values, strict=True))}
            found[tuple(combination.values())] = combination
    return list(found.values())


def _followed(answers: MeasuredAnswers, schema: AttributeSchema) -> Metrics | None:
    """How near the answers come to combinations that no row had: means asked and measured, and the mean distance."""
    pairs = [(row.requested[-1], answers.measure(row)) for row in answers.rows if row.group == HELD_OUT]
    if not pairs:
        return None
    distances = [abs(asked[name] - got[name]) for asked, got in pairs for name in asked.keys() & got.keys()]
    columns = {
        kind: {n: [p[i][n] for p in pairs if n in p[i]] for n in schema.names}
        for i, kind in enumerate(("requested", "measured"))
    }
    means = {kind: {name: _mean(values) for name, values in found.items() if values} for kind, found in columns.items()}
    return {"answers": len(pairs), "distance": _mean(distances), **means}


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _arm_settings(preset: Preset, name: str) -> object:
    lead = preset.bootstrap.model_dump(include={"leading", "leading_at_least"}) if ARMS[name].rows == "best" else {}
    return {"policy": preset.policy, "template": preset.template, "seed": preset.seed, **lead}


def _longer_settings(preset: Preset) -> object:
    return {
        "policy": preset.policy,
        "learner": preset.bootstrap.learner,
        "rounds": preset.bootstrap.rounds,
        "template": preset.template,
        "seed": preset.seed,
    }


def _report_settings(preset: Preset) -> object:
    return {
        **{
            "evaluate": preset.evaluate,
            "leading": preset.bootstrap.leading,
            "sampling": sampling_settings(preset.sampling),
        },
        **{"seed": preset.seed, "lab": preset.rows.lab},
    }
