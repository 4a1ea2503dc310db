"""Stage `report`: turn each dial over its scale, measure what the answers are, print the steering table.

    python -m jobs.evaluate PRESET.yaml [key.path=value ...]

In the laboratory answers are measured exactly, from their text; on real rows by the predictor, and the table says which.
"""

import math

import matplotlib.figure

from data.prompts import steering_prompts
from data.storage import Storage
from jobs.bootstrap import Loop
from jobs.card import write_card
from jobs.command import main
from jobs.png import save_png
from jobs.preset import Preset
from jobs.sample import sampling_settings
from jobs.stage import Figures, Run, Stage, say
from jobs.steering import ask, questions, tabulate
from jobs.training_plots import draw_losses


def work(run: Run, folder: Storage) -> Figures:
    """Sample, measure, tabulate, draw."""
    settings = run.preset.evaluate
    stage = Loop().promoted(run, run.preset.bootstrap.rounds)
    policy = run.folder(stage)
    others = run.schema.best() if settings.others == "best" else {}
    prompts = steering_prompts(questions(run, settings.num_questions), run.schema, others, run.preset.seed, "evaluate")
    answers = ask(run, "evaluate", policy, prompts, folder)
    table, best = tabulate(run.schema, answers)
    report: Figures = {
        "policy": policy.uri,
        "policy_stage": stage,  # the endpoint serves it, wherever the run lies by then
        "measured_by": answers.measured_by,
        "steering": table,
        "at_best_settings": best,
        "requested_best": run.schema.best(),
    }
    rounds = _rounds(run)
    report |= {"rounds": rounds} if rounds else {}
    (folder / "report.json").write_json(report)
    _plot(run, table, answers.measured_by, folder / "steering.png")
    _plot_rounds(run, rounds, folder / "rounds.png")
    draw_losses(_trainings(run), folder / "losses.png")
    _complete_card(run, policy, report)
    _print(table, best, answers.measured_by)
    return report | {"counts": {"questions": settings.num_questions, "answers": len(answers.rows)}}


def _rounds(run: Run) -> list[Figures]:
    """What the verdicts say: the policy before the first round, then the one after each round that was run."""
    found: list[Figures] = []
    for number in range(1, run.preset.bootstrap.rounds + 1):
        manifest = run.manifest(Loop().verdict(number))
        if manifest and "after" in manifest["figures"]:
            figures = manifest["figures"]
            found += [] if found else [{"round": 0, "promoted": True, **figures["before"]}]
            found.append({"round": number, "promoted": figures["promoted"], **figures["after"]})
    return found


def _trainings(run: Run) -> dict[str, Figures]:
    """The curves of all trainings of the run, by stage."""
    stages = ["base", "predictor", *(Loop().policy(number) for number in range(run.preset.bootstrap.rounds + 1))]
    files = {name: run.folder(name) / "training.json" for name in stages}
    return {name: file.read_json() for name, file in files.items() if file.exists()}


def _complete_card(run: Run, policy: Storage, report: Figures) -> None:
    """Now that it is known whether the dials turn, the model's card says so."""
    settings = run.preset.policy.learner if policy.uri == run.folder("policy").uri else run.preset.bootstrap.learner
    write_card(run, "policy", settings, (policy / "training.json").read_json(), policy / "model", report)


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
    save_png(figure, target)


def _plot_rounds(run: Run, rounds: list[Figures], target: Storage) -> None:
    """What bootstrap did: steering, variety, length, and predicted against true means, round by round."""
    if not rounds:
        return
    figure = matplotlib.figure.Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    numbers = [r["round"] for r in rounds]
    for axes, title, values in (
        (panels[0, 0], "Spearman of asked and measured, mean over dials", [r["mean_spearman"] for r in rounds]),
        (panels[0, 1], "distinct-2: share of different pairs of words", [r["drift"]["distinct_2"] for r in rounds]),
        (panels[1, 0], "words in an answer", [r["drift"]["words"] for r in rounds]),
    ):
        axes.plot(numbers, values, marker="o")
        axes.set(title=title, xticks=numbers, xlabel="round")
    last = panels[1, 1]
    for name in run.schema.names:
        (line,) = last.plot(numbers, [r["drift"]["predicted"].get(name, math.nan) for r in rounds], marker="o", label=name)
        if all("true" in r["drift"] for r in rounds):
            last.plot(numbers, [r["drift"]["true"].get(name, math.nan) for r in rounds], linestyle=":", color=line.get_color())
    last.set(title="mean of each attribute, predicted (and true: dotted)", xticks=numbers, xlabel="round")
    last.legend(fontsize="small")
    kept = ", ".join(f"{r['round']} {'' if r['promoted'] else 'not '}promoted" for r in rounds[1:])
    figure.suptitle(f"{run.preset.run}: bootstrap rounds ({kept})")
    save_png(figure, target)


def stage(preset: Preset) -> Stage:
    """The report is about the last policy of the run that was promoted."""
    rounds = range(1, preset.bootstrap.rounds + 1)
    return Stage(
        "report", ("rows", "predictor", "policy", *(name for number in rounds for name in (Loop().policy(number), Loop().verdict(number)))), _settings, work
    )


def _settings(preset: Preset) -> object:
    return {"evaluate": preset.evaluate, "sampling": sampling_settings(preset.sampling), "seed": preset.seed, "lab": preset.rows.lab}


if __name__ == "__main__":
    main(__doc__, lambda preset: [stage(preset)])
