"""The report's parts about how the model was made: bootstrap rounds, trainings, counts, lineage, settings.

Read from what the stages left; a part whose stage did not run is left out. Knows no HTML and no Markdown.
"""

from collections.abc import Iterator, Mapping, Sequence

import yaml

from cluster.masking import without_secrets
from data.run_layout import TRAINING, Manifest, read_record
from data.stage_metrics import NotRun, PolicyMetrics, RowsMetrics, SelectionMetrics, TrainingMetrics
from data.steering_metrics import RoundMeasures
from jobs.reporting.blocks import Block, Gallery, Listing, Part, duration, finite
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_steering import rounds as round_plots
from jobs.reporting.figures_training import losses
from jobs.reporting.tables import Cell, Table
from jobs.runner.rounds import Rounds, unconditional_stage
from jobs.runner.rounds import stage_names as bootstrap_stages
from jobs.runner.stage import Run


def stage_names(run: Run) -> list[str]:
    """All stages that a report is made from, in order."""
    rounds = bootstrap_stages(run.preset.bootstrap.rounds)
    return ["rows", "base", "predictor", "annotated", "policy", unconditional_stage(Rounds()), *rounds]


def training_parts(run: Run) -> Iterator[Part | None]:
    manifests = {name: found for name in stage_names(run) if (found := run.manifest(name))}
    yield _trainings(run)
    yield _counts(run, manifests)
    yield _lineage(manifests)
    masked = without_secrets(run.preset.model_dump(mode="json"))
    settings = yaml.safe_dump(masked, sort_keys=False, allow_unicode=True, width=100)
    about = "All settings, defaults included. A preset with these lines and the same rows reproduces the run."
    yield Part("settings", "Settings", about, [Listing("All settings, as YAML", settings)])


# --- bootstrap --------------------------------------------------------------------------------------------------------


def rounds_part(run: Run, rounds: Sequence[RoundMeasures]) -> Part | None:
    """What was kept of the samples, and whether the policy after a round was better."""
    samples: list[list[Cell]] = []
    decisions: list[list[Cell]] = []
    for number in range(1, run.preset.bootstrap.rounds + 1):
        selected = run.metrics(Rounds().stage(number, "selected"), SelectionMetrics)
        counts = dict(selected.counts) if selected else {}
        total = max(1, counts.pop("samples", 0))
        samples += [[f"round {number}", reason, n, f"{n / total:.1%}"] for reason, n in counts.items()]
        if decision := Rounds().decision(run, number):
            why = "; ".join(decision.fell) or "nothing fell by more than allowed"
            prefix = "not run: " if isinstance(decision, NotRun) else ""
            decisions.append([f"round {number}", decision.promoted, prefix + why])
    blocks: list[Block] = [Gallery([as_svg(plot) for plot in round_plots(run.schema, rounds)])] if rounds else []
    if decisions:
        blocks.append(Table("Was the policy after the round promoted?", ["round", "promoted", "why"], decisions))
    if rounds:
        blocks.append(_drift(rounds))
    if samples:
        columns = ["round", "kept, or dropped because", "samples", "share"]
        blocks.append(Table("What became of the samples", columns, samples))
    if weights := _weights(run):
        blocks.append(weights)
    return Part("rounds", "Bootstrap rounds", ABOUT_ROUNDS, blocks) if blocks else None


ABOUT_ROUNDS = (
    "The model answered at its best settings, the predictor rated the answers, and the model was trained again on the "
    "kept ones. Good: steering rises, variety (distinct-2) does not fall, and predicted means do not rise above the "
    "true ones. A round that made the policy worse is not promoted."
)


def _weights(run: Run) -> Table | None:
    """Of rounds of SteerLM 2.0: what the weights were, and whether the policy came nearer to them."""
    rows: list[list[Cell]] = []
    for number in range(1, run.preset.bootstrap.rounds + 1):
        selected = run.metrics(Rounds().stage(number, "selected"), SelectionMetrics)
        trained = run.metrics(Rounds().policy(number), PolicyMetrics)
        if selected and selected.groups and trained and trained.kl:
            groups, kl = selected.groups, trained.kl
            rows.append(
                [f"round {number}", groups.prompts, groups.effective, groups.kl, kl.first, kl.last, kl.held_out]
            )
    columns = ["SteerLM 2.0", "prompts", "effective answers", "KL before", "first fifth", "last fifth", "held out"]
    title = (
        "KL(w'||b') of the target weights and the policy's shares of the answers to a prompt, in nats: it should fall"
    )
    return Table(title, columns, rows) if rows else None


def _drift(rounds: Sequence[RoundMeasures]) -> Table:
    rows: list[list[Cell]] = []
    for r in rounds:
        measures = r.mean_spearman, finite(r.leading_gap_at_best), r.drift.distinct_2, r.drift.words
        rows.append([f"round {r.round}" if r.round else "before", *measures, r.promoted])
    columns = ["policy after", "mean Spearman", "gap at best", "distinct-2", "words", "promoted"]
    return Table("The policies, with the same questions", columns, rows)


# --- trainings, counts, lineage ---------------------------------------------------------------------------------------


def trainings(run: Run) -> dict[str, TrainingMetrics]:
    """All trainings of the run, folds and warm-ups included, by folder."""
    policies = (Rounds().policy(number) for number in range(run.preset.bootstrap.rounds + 1))
    stages = ["base", "predictor", unconditional_stage(Rounds()), *policies]
    found = {}
    for stage in stages:
        for file in run.folder(stage).names(TRAINING):
            name = f"{stage}/{file}".removesuffix(f"/{TRAINING}")
            found[name] = read_record(run.folder(stage) / file, TrainingMetrics)
    return {name: training for name, training in found.items() if training.losses}


def _trainings(run: Run) -> Part | None:
    found = trainings(run)
    figures, rows = [], []
    for name, t in found.items():
        figures.append(as_svg(losses(f"loss-{name.replace('/', '-')}", name, t)))
        last = t.losses[-1].loss
        counts = t.examples, t.epochs, t.steps, t.tokens
        rows.append([name, *counts, last, t.validation_loss, t.saved_step, duration(t.train_seconds)])
    about = (
        "The loss of every training, step by step. Good: both lines fall and stay together. If the held-out loss rises "
        "while the other falls, the model learns its rows by heart; if neither falls, it learns nothing."
    )
    columns = ["training", "examples", "epochs", "steps", "tokens", "last loss", "held out", "saved step", "took"]
    blocks: list[Block] = [Gallery(figures), Table("All trainings", columns, rows)]
    if read := _label_use(found):
        blocks.append(read)
    return Part("trainings", "Trainings", about, blocks) if found else None


def _label_use(found: Mapping[str, TrainingMetrics]) -> Table | None:
    """What each policy loses when the labels of one attribute are dealt anew among held-out answers."""
    rows: list[list[Cell]] = [
        [name, attribute, use.nats, f"{use.low:.4f} to {use.high:.4f}", use.conversations, use.low > 0]
        for name, training in found.items()
        for attribute, use in training.label_use.items()
    ]
    columns = ["policy", "attribute", "nats a token", "95 % interval", "held-out conversations", "read"]
    title = "Which labels the policies read: loss with labels of other answers, less that with their own"
    return Table(title, columns, rows) if rows else None


def _counts(run: Run, manifests: Mapping[str, Manifest]) -> Part | None:
    """What was read, kept and rejected, and the counts of the later stages."""
    sources = run.metrics("rows", RowsMetrics)
    kept: list[list[Cell]] = []
    rejected: list[list[Cell]] = []
    for name, counts in (sources.counts if sources else {}).items():
        reasons = {what.partition(": ")[2]: n for what, n in counts.items() if what.startswith("rejected: ")}
        read = [counts.get(key, 0) for key in ("read", "rows", "duplicate", "near_duplicate", "merged")]
        kept.append([name, *read, sum(reasons.values()), counts.get("answers"), counts.get("rated_answers")])
        rejected += [[name, reason, n] for reason, n in reasons.items()]
    later = [
        [stage, what, n]
        for stage, manifest in manifests.items()
        if stage != "rows"
        for what, n in manifest.metrics.get("counts", {}).items()
    ]
    columns = ["source", "read", "kept", "duplicates", "near duplicates", "more raters", "rejected", "answers"]
    columns.append("rated by people")
    tables = [
        Table("What was read", columns, kept),
        Table("Why records were rejected", ["source", "reason", "records"], rejected),
        Table("Counts of the later stages", ["stage", "what", "count"], later, folded=True),
    ]
    blocks = [table for table in tables if table.rows]
    about = (
        "Nothing is dropped silently: rows/rejected keeps what is no conversation, with file, line and reason, "
        "and it is counted here. Good: few rejections, each for a reason that fits the source."
    )
    return Part("counts", "Counts and rejections", about, blocks) if blocks else None


def _lineage(manifests: Mapping[str, Manifest]) -> Part | None:
    if not manifests:
        return None
    rows = [
        [name, ", ".join(m.description["needs"]) or "nothing", m.fingerprint, duration(m.seconds), m.finished]
        for name, m in manifests.items()
    ]
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in m.versions.items()) for m in manifests.values())
    about = (
        f"Which stage was made from which, in {duration(sum(m.seconds for m in manifests.values()))} altogether. A "
        "fingerprint stands for a stage's settings and inputs: equal fingerprints mean equal work. "
        f"Versions: {'; or '.join(v for v in versions if v)}."
    )
    columns = ["stage", "inputs", "fingerprint", "took", "finished"]
    return Part("lineage", "Lineage", about, [Table("Stages, in order", columns, rows)])
