"""The report's parts about how the model was made: annotation, predictor, trainings, bootstrap rounds, counts, lineage, settings.

Read from what the stages left; a part whose stage is not there is left out. Knows no HTML and no Markdown.
"""

from collections.abc import Iterator

import yaml

from data.attributes import AttributeSchema
from jobs.reporting.blocks import Block, Cell, Figure, Gallery, Listing, Part, Table, duration, finite, without_secrets
from jobs.reporting.rows import Spread, spreads
from jobs.reporting.svg_figures import by_round, histogram, losses, reliability
from jobs.runner.rounds import Rounds
from jobs.runner.rounds import stage_names as bootstrap_stages
from jobs.runner.stage import Metrics, Run


def stage_names(run: Run) -> list[str]:
    """All stages that a report is made from, in order."""
    return ["rows", "base", "predictor", "annotated", "policy", *bootstrap_stages(run.preset.bootstrap.rounds)]


def training_parts(run: Run, report: Metrics) -> Iterator[Part | None]:
    manifests = {name: found for name in stage_names(run) if (found := run.manifest(name))}
    quality = run.folder("predictor") / "quality.json"
    yield _rounds(run, report.get("rounds") or [], manifests)
    yield _annotation(run)
    yield _quality(run.schema, quality.read_json()) if quality.exists() else None
    yield _trainings(run)
    yield _counts(manifests)
    yield _lineage(manifests)
    settings = yaml.safe_dump(
        without_secrets(run.preset.model_dump(mode="json")), sort_keys=False, allow_unicode=True, width=100
    )
    says = "Everything that was set, defaults included: with these lines as a preset, and the same rows, the run can be made again."
    yield Part("settings", "Settings", says, [Listing("All settings, as YAML", settings)])


# --- bootstrap ---------------------------------------------------------------------------------------------------------


def _rounds(run: Run, rounds: list[Metrics], manifests: dict[str, Metrics]) -> Part | None:
    """What was kept of the samples, and whether the policy after a round was better."""
    samples: list[list[Cell]] = []
    verdicts: list[list[Cell]] = []
    for number in range(1, run.preset.bootstrap.rounds + 1):
        selected, judged = (
            manifests.get(f"bootstrap-{number}/{kind}", {}).get("metrics", {}) for kind in ("selected", "promotion")
        )
        if counts := selected.get("counts"):
            samples += [
                [f"round {number}", reason, n, f"{n / max(1, counts['samples']):.1%}"]
                for reason, n in counts.items()
                if reason != "samples"
            ]
        if judged:
            why = f"not run: {'; '.join(judged['not_run'])}" if "not_run" in judged else "; ".join(judged["fell"])
            verdicts.append([f"round {number}", judged["promoted"], why or "nothing fell by more than allowed"])
    blocks: list[Block] = [Gallery(_round_metrics(run.schema, rounds))] if rounds else []
    if verdicts:
        blocks.append(Table("Was the policy after the round promoted?", ["round", "promoted", "why"], verdicts))
    if rounds:
        blocks.append(_drift(rounds))
    if samples:
        blocks.append(
            Table("What became of the samples", ["round", "kept, or dropped because", "samples", "share"], samples)
        )
    says = (
        "The model answered at its best settings, the predictor rated the answers, and the model was trained again on those that were kept. "
        "Good: steering rises, variety (distinct-2) does not fall, and predicted means do not run ahead of the true ones. "
        "A round that made things worse is not promoted."
    )
    return Part("rounds", "Bootstrap rounds", says, blocks) if blocks else None


def _round_metrics(schema: AttributeSchema, rounds: list[Metrics]) -> list[Figure]:
    numbers = [r["round"] for r in rounds]
    drifts = [r["drift"] for r in rounds]
    metrics = [
        by_round(
            "rounds-steering",
            "mean Spearman of the dials",
            numbers,
            [("", [finite(r["mean_spearman"]) for r in rounds])],
            (0, 1),
        ),
        by_round(
            "rounds-distinct",
            "distinct-2: variety",
            numbers,
            [("", [finite(d["distinct_2"]) for d in drifts])],
            (0, 0.01),
        ),
        by_round("rounds-words", "words in an answer", numbers, [("", [finite(d["words"]) for d in drifts])], (0, 10)),
    ]
    for attribute in schema.attributes:
        name, scale = attribute.name, (attribute.low, attribute.high)
        kinds = [kind for kind in ("predicted", "true") if any(name in d.get(kind, {}) for d in drifts)]
        series = [(kind, [finite(d.get(kind, {}).get(name)) for d in drifts]) for kind in kinds]
        metrics += [by_round(f"rounds-{name}", f"{name}: mean", numbers, series, scale)] if series else []
    return metrics


def _drift(rounds: list[Metrics]) -> Table:
    rows: list[list[Cell]] = []
    for r in rounds:
        d = r["drift"]
        metrics = [finite(v) for v in (r["mean_spearman"], r.get("leading_gap_at_best"), d["distinct_2"], d["words"])]
        rows.append([f"round {r['round']}" if r["round"] else "before", *metrics, r["promoted"]])
    return Table(
        "The policies, asked the same",
        ["policy after", "mean Spearman", "off its best", "distinct-2", "words", "promoted"],
        rows,
    )


# --- labels ------------------------------------------------------------------------------------------------------------


def _annotation(run: Run) -> Part | None:
    """People's values before, the predictor's after."""
    sides = []
    for folder, kind in ((run.folder("rows") / "rows", "human"), (run.folder("annotated") / "rows", "predicted")):
        sides.append(spreads(folder, kind, run.schema))
    before, after = sides
    if not after:
        return None
    metrics: list[Figure] = []
    rows: list[list[Cell]] = []
    for attribute in run.schema.attributes:
        none = Spread((0,) * (attribute.high - attribute.low + 1), None)
        pair = before.get(attribute.name, none), after.get(attribute.name, none)
        metrics.append(histogram(attribute, pair[0].counts, pair[1].counts))
        for who, found in zip(("people", "predictor"), pair, strict=True):
            rows.append([attribute.name, who, sum(found.counts), found.mean, " ".join(f"{n:,}" for n in found.counts)])
    says = (
        "People rate few answers; the predictor rates all of them, and the model learns from those labels. "
        "Good: the orange bars cover the whole scale as the blue ones do. "
        "A predictor that is unsure rates everything in the middle, and a model trained on that cannot reach the ends."
    )
    if run.preset.policy.calibrate:
        says += " Shown are raw predictions; before the policy learns from them they are stretched to the spread of people's (policy.calibrate)."
    table = Table(
        "Answers at each value, low to high",
        ["attribute", "rated by", "answers", "mean", "answers at each value"],
        rows,
        folded=True,
    )
    return Part("annotation", "Labels before and after annotation", says, [Gallery(metrics), table])


def _quality(schema: AttributeSchema, quality: Metrics) -> Part:
    """What the predictor is worth on answers it never saw."""
    header = [
        "attribute",
        "answers",
        "mean error",
        "calibrated",
        "of always the mean",
        "Spearman",
        "of the length alone",
    ]
    rows: list[list[Cell]] = []
    truths: list[list[Cell]] = []
    for name, row in quality["attributes"].items():
        baselines = row.get("baselines", {})
        errors = row.get("mae"), row.get("calibrated", row).get("mae"), baselines.get("mean", {}).get("mae")
        rows.append(
            [
                name,
                row["n"],
                *map(finite, errors),
                finite(row.get("spearman")),
                finite(baselines.get("length", {}).get("spearman")),
            ]
        )
        if "truth" in row:
            pairs = [row["truth"][who].get(key) for key in ("mae", "spearman") for who in ("predictor", "one_rater")]
            truths.append([name, row["truth"]["predictor"]["n"], *map(finite, pairs)])
    counts = quality.get("answers", {})
    says = (
        f"Judged on {counts.get('held_out', 0):,} rated answers it never saw. Good: its mean error is well below that of always saying the mean, "
        "its Spearman well above that of the text's length, and the marks lie on the dashed line, so that a predicted value means what people say."
    )
    drawable = [
        reliability(schema[name], row)
        for name, row in quality["attributes"].items()
        if row.get("reliability") and name in schema.names
    ]
    blocks: list[Block] = [Gallery(drawable)] if drawable else []
    blocks.append(Table("Against people; errors in points of the scale", header, rows))
    if truths:
        header = ["attribute", "answers", "mean error", "of one rater", "Spearman", "of one rater"]
        blocks.append(Table("Against the truth, beside the single rater it learned from", header, truths))
    return Part("predictor", "How good is the predictor?", says, blocks)


# --- trainings, counts, lineage ----------------------------------------------------------------------------------------


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
    metrics, rows = [], []
    for name, training in found.items():
        metrics.append(losses(f"loss-{name.replace('/', '-')}", name, training))
        counts = [training.get(key) for key in ("num_train", "epochs", "steps", "tokens")]
        last, held_out = finite(training["losses"][-1]["loss"]), finite(training.get("validation_loss"))
        seconds = finite(training.get("train_seconds"))
        rows.append(
            [name, *counts, last, held_out, training.get("saved_step"), None if seconds is None else duration(seconds)]
        )
    says = (
        "The loss of every training, step by step. Good: both lines fall and stay together. If what was held out rises while the other falls, "
        "the model learns its rows by heart; if neither falls, it learns nothing."
    )
    header = ["training", "examples", "epochs", "steps", "tokens", "last loss", "held out", "kept step", "took"]
    return (
        Part("trainings", "Trainings", says, [Gallery(metrics), Table("All trainings", header, rows)])
        if found
        else None
    )


def _counts(manifests: dict[str, Metrics]) -> Part | None:
    """What was read, kept and rejected, and the counts of the later stages."""
    sources = manifests.get("rows", {}).get("metrics", {}).get("counts", {})
    kept, rejected = [], []
    for name, counts in sources.items():
        reasons = {what.partition(": ")[2]: n for what, n in counts.items() if what.startswith("rejected: ")}
        kept.append(
            [
                name,
                *(counts.get(key, 0) for key in ("read", "rows", "duplicate")),
                sum(reasons.values()),
                counts.get("answers"),
                counts.get("rated_answers"),
            ]
        )
        rejected += [[name, reason, n] for reason, n in reasons.items()]
    later = [
        [stage, what, n]
        for stage, manifest in manifests.items()
        if stage != "rows"
        for what, n in (manifest["metrics"].get("counts") or {}).items()
        if isinstance(n, int | float)
    ]
    blocks: list[Block] = []
    if kept:
        blocks.append(
            Table(
                "What was read",
                ["source", "read", "kept", "duplicates", "rejected", "answers", "rated by people"],
                kept,
            )
        )
    if rejected:
        blocks.append(Table("Why records were rejected", ["source", "reason", "records"], rejected))
    if later:
        blocks.append(Table("Counts of the later stages", ["stage", "what", "count"], later, folded=True))
    says = (
        "Nothing is dropped silently: what is no conversation is kept apart (rows/rejected.jsonl, with file, line and reason) and counted here. "
        "Good: few rejections, each for a reason that one expects of the source."
    )
    return Part("counts", "Counts and rejections", says, blocks) if blocks else None


def _lineage(manifests: dict[str, Metrics]) -> Part | None:
    if not manifests:
        return None
    rows = []
    for name, manifest in manifests.items():
        needs = ", ".join(manifest.get("description", {}).get("needs", {}))
        rows.append(
            [name, needs or "nothing", manifest["fingerprint"], duration(manifest["seconds"]), manifest.get("finished")]
        )
    versions: dict[str, None] = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items()) for m in manifests.values()
    )
    says = (
        f"What was made from what, in {duration(sum(m['seconds'] for m in manifests.values()))} all in all. A fingerprint stands for a stage's settings and "
        f"everything it was made from: two runs with equal ones did the same. Versions: {'; or '.join(v for v in versions if v)}."
    )
    return Part(
        "lineage",
        "Lineage",
        says,
        [Table("Stages, in order", ["stage", "made from", "fingerprint", "took", "finished"], rows)],
    )
