"""The report's parts about how the model was made: bootstrap rounds, trainings, counts, lineage, settings.

Read from what the stages left; a part whose stage did not run is left out. Knows no HTML and no Markdown.
"""

from collections.abc import Iterator

import yaml

from jobs.reporting.blocks import Block, Gallery, Listing, Part, duration, finite, without_secrets
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_steering import rounds as round_plots
from jobs.reporting.figures_training import losses
from jobs.reporting.tables import Cell, Table
from jobs.runner.rounds import Rounds
from jobs.runner.rounds import stage_names as bootstrap_stages
from jobs.runner.stage import Metrics, Run


def stage_names(run: Run) -> list[str]:
    """All stages that a report is made from, in order."""
    return ["rows", "base", "predictor", "annotated", "policy", *bootstrap_stages(run.preset.bootstrap.rounds)]


def training_parts(run: Run) -> Iterator[Part | None]:
    manifests = {name: found for name in stage_names(run) if (found := run.manifest(name))}
    yield _trainings(run)
    yield _counts(manifests)
    yield _lineage(manifests)
    masked = without_secrets(run.preset.model_dump(mode="json"))
    settings = yaml.safe_dump(masked, sort_keys=False, allow_unicode=True, width=100)
    about = "All settings, defaults included. A preset with these lines and the same rows reproduces the run."
    yield Part("settings", "Settings", about, [Listing("All settings, as YAML", settings)])


# --- bootstrap --------------------------------------------------------------------------------------------------------


def rounds_part(run: Run, rounds: list[Metrics]) -> Part | None:
    """What was kept of the samples, and whether the policy after a round was better."""
    samples: list[list[Cell]] = []
    decisions: list[list[Cell]] = []
    for number in range(1, run.preset.bootstrap.rounds + 1):
        selected, promotion = (
            (run.manifest(f"bootstrap-{number}/{kind}") or {}).get("metrics", {}) for kind in ("selected", "promotion")
        )
        counts = dict(selected.get("counts") or {})
        total = max(1, counts.pop("samples", 0))
        samples += [[f"round {number}", reason, n, f"{n / total:.1%}"] for reason, n in counts.items()]
        if promotion:
            why = (
                f"not run: {'; '.join(promotion['not_run'])}"
                if "not_run" in promotion
                else "; ".join(promotion["fell"])
            )
            decisions.append([f"round {number}", promotion["promoted"], why or "nothing fell by more than allowed"])
    blocks: list[Block] = [Gallery([as_svg(plot) for plot in round_plots(run.schema, rounds)])] if rounds else []
    if decisions:
        blocks.append(Table("Was the policy after the round promoted?", ["round", "promoted", "why"], decisions))
    if rounds:
        blocks.append(_drift(rounds))
    if samples:
        columns = ["round", "kept, or dropped because", "samples", "share"]
        blocks.append(Table("What became of the samples", columns, samples))
    about = (
        "The model answered at its best settings, the predictor rated the answers, and the model was trained again "
        "on the kept ones. Good: steering rises, variety (distinct-2) does not fall, and predicted means do not "
        "rise above the true ones. A round that made the policy worse is not promoted."
    )
    return Part("rounds", "Bootstrap rounds", about, blocks) if blocks else None


def _drift(rounds: list[Metrics]) -> Table:
    rows: list[list[Cell]] = []
    for r in rounds:
        d = r["drift"]
        metrics = [finite(v) for v in (r["mean_spearman"], r.get("leading_gap_at_best"), d["distinct_2"], d["words"])]
        rows.append([f"round {r['round']}" if r["round"] else "before", *metrics, r["promoted"]])
    columns = ["policy after", "mean Spearman", "gap at best", "distinct-2", "words", "promoted"]
    return Table("The policies, with the same questions", columns, rows)


# --- trainings, counts, lineage ---------------------------------------------------------------------------------------


def trainings(run: Run) -> dict[str, Metrics]:
    """The curves of all trainings of the run, folds and warm-ups included, by folder."""
    stages = ["base", "predictor", *(Rounds().policy(number) for number in range(run.preset.bootstrap.rounds + 1))]
    found = {}
    for stage in stages:
        for file in run.folder(stage).names("training.json"):
            name = f"{stage}/{file}".removesuffix("/training.json")
            found[name] = (run.folder(stage) / file).read_json()
    return {name: found[name] for name in found if found[name].get("losses")}


def _trainings(run: Run) -> Part | None:
    found = trainings(run)
    figures, rows = [], []
    for name, training in found.items():
        figures.append(as_svg(losses(f"loss-{name.replace('/', '-')}", name, training)))
        counts = [training.get(key) for key in ("num_train", "epochs", "steps", "tokens")]
        last, held_out = finite(training["losses"][-1]["loss"]), finite(training.get("validation_loss"))
        seconds = finite(training.get("train_seconds"))
        took = None if seconds is None else duration(seconds)
        rows.append([name, *counts, last, held_out, training.get("saved_step"), took])
    about = (
        "The loss of every training, step by step. Good: both lines fall and stay together. If the held-out loss "
        "rises while the other falls, the model learns its rows by heart; if neither falls, it learns nothing."
    )
    columns = ["training", "examples", "epochs", "steps", "tokens", "last loss", "held out", "saved step", "took"]
    blocks: list[Block] = [Gallery(figures), Table("All trainings", columns, rows)]
    return Part("trainings", "Trainings", about, blocks) if found else None


def _counts(manifests: dict[str, Metrics]) -> Part | None:
    """What was read, kept and rejected, and the counts of the later stages."""
    sources = manifests.get("rows", {}).get("metrics", {}).get("counts", {})
    kept: list[list[Cell]] = []
    rejected: list[list[Cell]] = []
    for name, counts in sources.items():
        reasons = {what.partition(": ")[2]: n for what, n in counts.items() if what.startswith("rejected: ")}
        read = [counts.get(key, 0) for key in ("read", "rows", "duplicate")]
        kept.append([name, *read, sum(reasons.values()), counts.get("answers"), counts.get("rated_answers")])
        rejected += [[name, reason, n] for reason, n in reasons.items()]
    later = [
        [stage, what, n]
        for stage, manifest in manifests.items()
        if stage != "rows"
        for what, n in (manifest["metrics"].get("counts") or {}).items()
        if isinstance(n, int | float)
    ]
    columns = ["source", "read", "kept", "duplicates", "rejected", "answers", "rated by people"]
    tables = [
        Table("What was read", columns, kept),
        Table("Why records were rejected", ["source", "reason", "records"], rejected),
        Table("Counts of the later stages", ["stage", "what", "count"], later, folded=True),
    ]
    blocks = [table for table in tables if table.rows]
    about = (
        "Nothing is dropped silently: rows/rejected.jsonl keeps what is no conversation, with file, line and "
        "reason, and it is counted here. Good: few rejections, each for a reason that fits the source."
    )
    return Part("counts", "Counts and rejections", about, blocks) if blocks else None


def _lineage(manifests: dict[str, Metrics]) -> Part | None:
    if not manifests:
        return None
    rows = []
    for name, manifest in manifests.items():
        needs = ", ".join(manifest.get("description", {}).get("needs", {})) or "nothing"
        took = duration(manifest["seconds"])
        rows.append([name, needs, manifest["fingerprint"], took, manifest.get("finished")])
    versions = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items()) for m in manifests.values()
    )
    about = (
        f"Which stage was made from which, in {duration(sum(m['seconds'] for m in manifests.values()))} altogether. "
        "A fingerprint stands for a stage's settings and inputs: equal fingerprints mean equal work. Versions: "
        f"{'; or '.join(v for v in versions if v)}."
    )
    columns = ["stage", "inputs", "fingerprint", "took", "finished"]
    return Part("lineage", "Lineage", about, [Table("Stages, in order", columns, rows)])
