"""Stage `report`: turn each dial over its scale, measure what the answers are, print the steering table.

    python -m jobs.evaluate PRESET.yaml [key.path=value ...]

In the laboratory answers are measured exactly, from their text; on real rows by the predictor, and the table says which.
"""

import io
from collections import defaultdict
from collections.abc import Callable

import matplotlib.figure
import numpy as np

from data.attributes import Values
from data.conversation import Conversation, Message, from_table
from data.examples import bucket
from data.lab import Lab
from data.measures import steering
from data.prompts import prompts_table, steering_prompts
from data.storage import Storage
from jobs.annotate import annotate
from jobs.bootstrap import policy_stage, sample, sampling_settings
from jobs.card import write_card
from jobs.command import main
from jobs.pipelines import write_table
from jobs.preset import Preset
from jobs.stage import Figures, Run, Stage, say
from jobs.training import buckets_for
from jobs.training_plots import draw_losses

Measure = Callable[[Conversation], Values]


def work(run: Run, folder: Storage) -> Figures:
    """Sample, measure, tabulate, draw."""
    policy = run.folder(policy_stage(run.preset.bootstrap.rounds))
    others = run.schema.best() if run.preset.evaluate.others == "best" else {}
    prompts = steering_prompts(questions(run), run.schema, others, run.preset.seed, "evaluate")
    write_table(prompts_table(prompts), folder / "prompts")
    sample(run, "evaluate: sample", policy, folder / "prompts", folder / "answers", run.preset.evaluate.temperature)
    rows, measured_by, measure = _measured(run, folder)
    table, best = tabulate(run, rows, measure)
    report = {"policy": policy.uri, "measured_by": measured_by, "steering": table, "at_best_settings": best, "requested_best": run.schema.best()}
    (folder / "report.json").write_json(report)
    _plot(run, table, measured_by, folder / "steering.png")
    draw_losses(_trainings(run), folder / "losses.png")
    _complete_card(run, policy, report)
    _print(table, best, measured_by)
    return report | {"counts": {"questions": run.preset.evaluate.num_questions, "answers": len(rows)}}


def _trainings(run: Run) -> dict[str, Figures]:
    """The curves of all trainings of the run, by stage."""
    stages = ["base", "predictor", *(policy_stage(number) for number in range(run.preset.bootstrap.rounds + 1))]
    files = {name: run.folder(name) / "training.json" for name in stages}
    return {name: file.read_json() for name, file in files.items() if file.exists()}


def _complete_card(run: Run, policy: Storage, report: Figures) -> None:
    """Now that it is known whether the dials turn, the model's card says so."""
    settings = run.preset.bootstrap.learner if run.preset.bootstrap.rounds else run.preset.policy.learner
    write_card(run, "policy", settings, (policy / "training.json").read_json(), policy / "model", report)


def questions(run: Run) -> list[list[Message]]:
    """What is asked: the laboratory's questions, or first questions of groups that the policy did not train on where there are enough."""
    wanted = run.preset.evaluate.num_questions
    if _is_lab(run):
        return [[Message("user", q)] for q in Lab(run.preset.rows.lab).questions(wanted, run.preset.seed)]
    buckets = buckets_for(run.preset.policy.validation_share)
    found: dict[str, tuple[bool, str]] = {}
    for table in (run.folder("rows") / "rows").tables():
        for row in from_table(table):
            found[row.messages[0].content] = (not (buckets and bucket(row.group, buckets) == 0), row.group)
    ordered = sorted(found, key=lambda q: (found[q], q))
    return [[Message("user", q)] for q in ordered[:wanted]]


def _is_lab(run: Run) -> bool:
    return any(s.format == "lab" for s in run.preset.rows.sources)


def _measured(run: Run, folder: Storage) -> tuple[list[Conversation], str, Measure]:
    if _is_lab(run):
        lab = Lab(run.preset.rows.lab)
        return _rows(folder / "answers"), "exactly, from the text", lambda row: lab.measure(row.messages)
    annotate(run, "evaluate: rate", folder / "answers", folder / "rated")
    return _rows(folder / "rated"), "by the predictor", lambda row: row.predicted[-1]


def _rows(folder: Storage) -> list[Conversation]:
    return sorted((row for table in folder.tables() for row in from_table(table)), key=lambda r: r.id)


def tabulate(run: Run, rows: list[Conversation], measure: Measure) -> tuple[Figures, Figures]:
    """The steering table, one entry per attribute that was turned, and the mean of every attribute at best settings."""
    turned: dict[str, list[tuple[float, float]]] = defaultdict(list)
    best: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        values = measure(row)
        if row.group == "best":
            for name, value in values.items():
                best[name].append(value)
        else:
            turned[row.group].append((row.requested[-1][row.group], values.get(row.group, np.nan)))
    table = {name: steering(*zip(*turned[name], strict=True)) for name in run.schema.names if name in turned}
    return table, {name: round(float(np.mean(values)), 4) for name, values in best.items()}


def _print(table: Figures, best: Figures, measured_by: str) -> None:
    say(f"steering, measured {measured_by}:")
    for name, row in table.items():
        means = "  ".join(f"{asked:g}->{got:.2f}" for asked, got in zip(row["requested"], row["measured"], strict=True))
        say(f"  {name:14} {means}   Spearman {row['spearman']:.2f}{'' if row['monotonic'] else '  (not monotonic)'}")
    say("  all dials at best: " + "  ".join(f"{name} {value:.2f}" for name, value in best.items()))


def _plot(run: Run, table: Figures, measured_by: str, target: Storage) -> None:
    """Requested against measured, one curve per attribute."""
    figure = matplotlib.figure.Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    low, high = min(a.low for a in run.schema.attributes), max(a.high for a in run.schema.attributes)
    axes.plot([low, high], [low, high], color="0.8", linestyle="--", label="as asked")
    for name, row in table.items():
        axes.plot(row["requested"], row["measured"], marker="o", label=f"{name} (Spearman {row['spearman']:.2f})")
    axes.set(xlabel="requested", ylabel=f"measured {measured_by}", title=f"{run.preset.run}: does the dial turn?")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    target.write_bytes(buffer.getvalue())


def stage(preset: Preset) -> Stage:
    """The report is about the last policy of the run."""
    return Stage("report", ("rows", "predictor", policy_stage(preset.bootstrap.rounds)), _settings, work)


def _settings(preset: Preset) -> object:
    return {"evaluate": preset.evaluate, "sampling": sampling_settings(preset.sampling), "seed": preset.seed, "lab": preset.rows.lab}


if __name__ == "__main__":
    main(__doc__, lambda preset: [stage(preset)])
