"""The policy beside other models: baselines that were asked the same questions, and the base model's own answers.

Read from what the stages `compare/*` left; a part whose stage did not run is left out. Knows no HTML and no Markdown.
"""

from collections.abc import Iterator, Mapping

from data.compared import ComparedPair, spread_evenly
from data.quality_metrics import PairAccuracy
from data.run_layout import COMPARE, PAIRS
from data.steering_metrics import (
    BaselineMetrics,
    PreferenceMetrics,
    ReportMetrics,
    SteeringCurve,
    WitnessCurve,
    WitnessMetrics,
)
from jobs.reporting.blocks import Block, Part, Quotes
from jobs.reporting.tables import Cell, Table, as_text, between, shown
from jobs.runner.stage import Run

POLICY = "the policy"
SHOWN_PAIRS = 20
"""Questions whose two answers are printed, evenly from the file."""
ABOUT_BASELINES = (
    "Other models were asked the very same questions at the same settings, with the same sampling seeds, and measured "
    "in the same way. Zero-shot is the base model before any training, which is only told the values in words. Good: "
    "the policy's Spearman is above its interval."
)
ABOUT_PREFERENCE = (
    "With all attributes requested at their best, does the predictor prefer the policy's answer to what the untrained "
    "base model answers of its own accord? One half is no preference. The predictor rated the policy's training rows, "
    "too, so read some pairs yourself; and where the longer answer wins as often, length may be all."
)


def comparison_parts(run: Run, report: ReportMetrics) -> Iterator[Part]:
    if baselines := _baselines(run):
        tables = [_curves(report, baselines), _movements(report, baselines)]
        yield Part("baselines", "Beside other models", ABOUT_BASELINES, tables)
    if preference := run.metrics(f"{COMPARE}/preference/report", PreferenceMetrics):
        yield Part("preference", "Against the base model's own answers", ABOUT_PREFERENCE, _preference(run, preference))


def preference_lines(found: PreferenceMetrics) -> Iterator[str]:
    """The table for a terminal."""
    yield from as_text(_shares(found))


def baseline_lines(found: BaselineMetrics) -> Iterator[str]:
    """The table for a terminal."""
    yield from as_text(Table(found.meaning, COLUMNS, list(_rows(found.meaning, found.steering, found.witnesses))))


def _baselines(run: Run) -> dict[str, BaselineMetrics]:
    names = run.preset.compare.baselines
    found = {name: run.metrics(f"{COMPARE}/{name}/report", BaselineMetrics) for name in names}
    return {name: metrics for name, metrics in found.items() if metrics}


# --- baselines --------------------------------------------------------------------------------------------------------

COLUMNS = ["model", "attribute", "by", "answers", "Spearman", "requested → mean"]


def _curves(report: ReportMetrics, baselines: Mapping[str, BaselineMetrics]) -> Table:
    """Attribute after attribute, each by the predictor and by its witnesses, all models one below the other."""
    rows = list(_rows(POLICY, report.steering, report.witnesses))
    for found in baselines.values():
        rows += _rows(found.meaning, found.steering, found.witnesses)
    order = {key: number for number, key in enumerate(dict.fromkeys((row[1], row[2]) for row in rows))}
    rows.sort(key=lambda row: order[row[1], row[2]])  # stable: the policy is the first of each
    return Table("Spearman of requested and measured values, with its 95 % interval", COLUMNS, rows)


def _rows(
    model: str, steering: Mapping[str, SteeringCurve], witnesses: Mapping[str, WitnessMetrics]
) -> Iterator[list[Cell]]:
    for name, curve in steering.items():
        yield [model, name, "measured", *_cells(curve)]
        for kind, witness in witnesses.items():
            if witness.attribute == name and name in witness.curves:
                yield [model, name, kind, *_cells(witness.curves[name])]


def _cells(curve: SteeringCurve | WitnessCurve) -> list[Cell]:
    points = ", ".join(f"{r:g} → {shown(m)}" for r, m in zip(curve.requested, curve.measured, strict=True))
    return [curve.n, between(curve.spearman, curve.spearman_low, curve.spearman_high), points]


def _movements(report: ReportMetrics, baselines: Mapping[str, BaselineMetrics]) -> Table:
    """Model after model: how far each attribute moves, in standard deviations of the labels."""
    models: dict[str, Mapping[str, SteeringCurve]] = {POLICY: report.steering}
    models |= {found.meaning: found.steering for found in baselines.values()}
    names = list(report.steering)
    rows: list[list[Cell]] = []
    for model, steering in models.items():
        moves = [steering[name].movement if name in steering else None for name in names]
        rows.append([model, *(between(found.moved, found.low, found.high) if found else None for found in moves)])
    title = "Movement from the lowest to the highest request, in standard deviations of the labels, with 95 % intervals"
    return Table(title, ["model", *names], rows)


# --- preference -------------------------------------------------------------------------------------------------------


def _preference(run: Run, found: PreferenceMetrics) -> list[Block]:
    file = run.folder(f"{COMPARE}/preference/report") / PAIRS
    pairs = [ComparedPair.model_validate_json(line) for line in file.read_text().splitlines()] if file.exists() else []
    blocks: list[Block] = [_shares(found), _means(found)]
    for number, pair in enumerate(spread_evenly(pairs, SHOWN_PAIRS)):
        sides = [
            (f"policy, score {shown(pair.policy_score)}", pair.policy),
            (f"base model, score {shown(pair.base_score)}", pair.base),
        ]
        blocks.append(Quotes(pair.question, sides, open=number < 2))
    return blocks


def _shares(found: PreferenceMetrics) -> Table:
    rows: list[list[Cell]] = [["one score of all", *_share(found.preferred)]]
    rows += [[name, *_share(share)] for name, share in found.each_attribute.items()]
    rows.append(["the longer answer", *_share(found.longer)])
    weights = " ".join(f"{weight:+.2f} {name}" for name, weight in found.weights.items() if weight)
    title = f"Share of questions on which the policy's answer is higher, ties half; the one score is {weights}"
    return Table(title, ["by", "questions", "ties", "share (95 % interval)"], rows)


def _share(found: PairAccuracy) -> list[Cell]:
    return [found.n, found.ties, between(found.accuracy, found.low, found.high)]


def _means(found: PreferenceMetrics) -> Table:
    names = list(dict.fromkeys(name for means in found.means.values() for name in means))
    rows = [[side, *(means.get(name) for name in names)] for side, means in found.means.items()]
    return Table(f"Means of the answers, rated {found.rated_by}", ["answers of", *names], rows)
