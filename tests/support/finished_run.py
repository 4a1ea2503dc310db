"""A made-up folder of a finished run: what a report is made from, without any training."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from support.manifests import finish, measures, training

from cluster.settings.load import load
from data.calibration import Calibration
from data.conversation import Conversation, Message, to_table
from data.quality_metrics import (
    AttributeQuality,
    CalibratedErrors,
    Collinearity,
    ErrorMetrics,
    LengthBaseline,
    PredictorQuality,
    QualityBaselines,
    ReliabilityBin,
    TruthErrors,
)
from data.run_layout import QUALITY, REPORT, write_record
from data.run_layout import TRAINING as TRAINING_FILE
from data.stage_metrics import (
    AnnotationMetrics,
    AuditMetrics,
    BaseMetrics,
    LossPoint,
    PolicyMeasures,
    PolicyMetrics,
    PredictorMetrics,
    PromotionMetrics,
    RowsMetrics,
    SamplesMetrics,
    SelectionMetrics,
)
from data.steering_metrics import (
    CombinedSetting,
    CrossTalk,
    DialogueCurve,
    JudgeMetrics,
    LengthMetrics,
    ReportMetrics,
    RoundMeasures,
    SteeringCurve,
    TrustEverywhere,
    WitnessCurve,
    WitnessMetrics,
)
from data.storage import Storage
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

DEMO = str(Path(__file__).resolve().parents[2] / "jobs" / "presets" / "demo.yaml")
NAMES = ("helpfulness", "creativity", "humor", "toxicity", "verbosity")
HOSTILE = "Owls <script>alert(1)</script> & </details> ```hoot``` | [x](javascript:alert(2))"
"""An answer that would be markup, if it were let."""
CURVE = tuple(LossPoint(step=step, loss=4 / step) for step in range(1, 9))
TRAINING = training(
    steps=8,
    epochs=1,
    examples=50,
    tokens=1234,
    train_seconds=61.2,
    saved_step=8,
    validations=CURVE[3::4],
    losses=CURVE,
)


def finished(storage: Path, *overrides: str) -> Run:
    """All stages of the demo preset, each with what a report reads of it; report.json has every part that there is."""
    run = Run(load(Preset, DEMO, [f"storage={storage}", *overrides]))
    rows = [_row(f"q{n}", f"a{n}", human={name: float(n % 5) for name in NAMES[:3]}) for n in range(20)]
    _write(run.folder("rows") / "rows", rows, run)
    predicted = dict.fromkeys(NAMES, 2.6)
    _write(run.folder("annotated") / "rows", [_row(f"q{n}", f"a{n}", predicted=predicted) for n in range(20)], run)
    asked = [
        _row(q, HOSTILE, group=name, requested={name: float(v)})
        for q in ("Owls?", "Bees?", "Trains?")
        for name in NAMES
        for v in range(5)
    ]
    _write(run.folder("report") / "answers", asked, run)
    for stage in ("base", "predictor", "predictor/fold-0", "policy", "bootstrap-1/policy"):
        write_record(run.folder(stage) / TRAINING_FILE, TRAINING)
    write_record(run.folder("predictor") / QUALITY, quality())
    _write_manifests(run)
    write_record(run.folder("report") / REPORT, report(run))
    return run


def _write_manifests(run: Run) -> None:
    counts = {"read": 22, "rows": 20, "answers": 20, "rated_answers": 20, "duplicate": 1, "rejected: empty_message": 1}
    finish(run.root, "rows", RowsMetrics(counts={"lab": counts}, rows=20))
    answers = {"answers": 20}
    finish(run.root, "base", BaseMetrics(counts=answers))
    policy = PolicyMetrics(training=TRAINING.without_curve(), counts=answers)
    for stage in ("policy", "bootstrap-1/policy"):
        finish(run.root, stage, policy)
    one_pass: dict[str, Any] = {"rows": 20, "rows_before": 0, "seconds": 1.0, "rows_per_s": 20.0}
    one_pass |= {"audit": AuditMetrics(files=1, rows=20, digest="d"), "counts": answers}
    rated = AnnotationMetrics(**one_pass, predicted_mean={}, pack_fill=0.9)
    for stage in ("annotated", "bootstrap-1/rated"):
        finish(run.root, stage, rated)
    finish(run.root, "bootstrap-1/samples", SamplesMetrics(**one_pass, tokens=9, cut_off=0, combinations=()))
    finish(run.root, "predictor", predictor_metrics(answers))
    counts = {"samples": 40, "kept": 37, "duplicate": 3}
    finish(run.root, "bootstrap-1/selected", SelectionMetrics(counts=counts, drift=_measures(1).drift))
    fell = ("mean Spearman 0.900 -> 0.700",)
    decision = PromotionMetrics(
        before=_measures(0), after=_measures(1), promoted=False, fell=fell, policy="policy", counts={"answers": 20}
    )
    finish(run.root, "bootstrap-1/promotion", decision)
    finish(run.root, "report", report(run))


def predictor_metrics(counts: dict[str, int]) -> PredictorMetrics:
    held_out = {name: row.without_bins() for name, row in quality().attributes.items()}
    return PredictorMetrics(
        training=TRAINING.without_curve(),
        counts=counts,
        labels={},
        held_out=held_out,
        calibration=Calibration(),
        quality="quality.json",
        pairs={},
    )


def report(run: Run) -> ReportMetrics:
    """All parts of a `report.json`."""
    best = {name: float(value) for name, value in run.schema.best().items()}
    trust: dict[str, Any] = {"n": 900, "spearman": 0.9444, "mae": 0.1515, "slope": 0.9}
    everywhere = TrustEverywhere(n=900, spearman=0.61, mae=0.2, slope=0.8, ceiling=0.66)
    slopes = tuple(tuple(0.97 if a == b else -0.0612 for a in NAMES) for b in NAMES)
    requested, measured = {"humor": 4.0, "verbosity": 1.0}, {"humor": 3.81, "verbosity": 1.23}
    return ReportMetrics(
        policy=run.folder("policy").uri,
        policy_stage="policy",
        measured_by="exactly, from the text",
        steering=_steering(),
        at_best_settings={name: value * 0.9 for name, value in best.items()},
        requested_best=best,
        cross_talk=CrossTalk(attributes=NAMES, measured=NAMES, slope=slopes),
        combined=(CombinedSetting(requested=requested, measured=measured, mean_absolute_gap=0.21, n=30),),
        dialogue={"humor": DialogueCurve(first=(0, 4), second=(4, 0), measured_second=(3.77, 0.13), n=20)},
        judge={name: JudgeMetrics(**trust, everywhere=everywhere) for name in NAMES},
        judge_note="All attributes reach Spearman 0.9.",
        length={name: LengthMetrics(spearman_words=0.3333, partial_spearman=-0.0456) for name in NAMES},
        witnesses={"words": _witness("verbosity", "words"), "hatesonar": _witness("toxicity", "probability")},
        absent_witnesses={"flesch_kincaid": "nobody can read"},
        rounds=(
            RoundMeasures(**dict(_measures(0)), round=0, promoted=True),
            RoundMeasures(**dict(_measures(1)), round=1, promoted=False),
        ),
        counts={"answers": 20},
    )


def _steering() -> dict[str, SteeringCurve]:
    """The last attribute does not follow the request."""
    curve = SteeringCurve(
        requested=(0, 1, 2, 3, 4),
        measured=(0.1, 1, 2.2, 2.9, 3.9),
        low=(0, 0.9, 2, 2.8, 3.7),
        high=(0.2, 1.1, 2.4, 3, 4),
        n=150,
        spearman=0.9321,
        slope=0.96,
        monotonic=True,
        reached=(0.1, 3.9),
        mean_absolute_gap=0.1234,
    )
    flat = curve.model_copy(update={"measured": (2, 2, None, 2, 2), "spearman": None, "monotonic": False})
    return dict.fromkeys(NAMES[:4], curve) | {NAMES[4]: flat}


def _witness(attribute: str, unit: str) -> WitnessMetrics:
    curve = WitnessCurve(
        requested=(0, 2, 4),
        measured=(12.5, 40, None),
        low=(10, 30, None),
        high=(14, 55, None),
        n=90,
        spearman=0.7777,
        spearman_low=0.7111,
        spearman_high=0.8222,
    )
    flat = curve.model_copy(update={"spearman": None, "spearman_low": None, "spearman_high": None})
    curves = dict.fromkeys(NAMES, flat) | {attribute: curve}
    return WitnessMetrics(meaning="Counted.", unit=unit, attribute=attribute, is_rater=unit == "words", curves=curves)


def quality() -> PredictorQuality:
    marks = tuple(ReliabilityBin(n=10, predicted=v + 0.1, human=v, se=0.1 if v else None) for v in range(5))
    row = AttributeQuality(
        n=50,
        mae=0.6462,
        rmse=0.8,
        spearman=0.7864,
        reliability=marks,
        calibrated=CalibratedErrors(n=50, mae=0.6363),
        baselines=QualityBaselines(mean=ErrorMetrics(n=50, mae=1.1561), length=LengthBaseline(spearman=0.44)),
        truth=TruthErrors(
            predictor=ErrorMetrics(n=50, mae=0.4, spearman=0.92), one_rater=ErrorMetrics(n=50, mae=0.43, spearman=0.87)
        ),
    )
    return PredictorQuality(
        answers={"rated": 100, "held_out": 50, "unscored": 0},
        attributes=dict.fromkeys(NAMES, row),
        calibration=Calibration(),
        collinearity=Collinearity(names=(), spearman=(), n=()),
    )


def _measures(number: int) -> PolicyMeasures:
    """The policy after round `number`."""
    means = dict.fromkeys(NAMES, 2.0 + 0.1 * number)
    return measures(0.9 - 0.2 * number, 0.1, 0.5 - 0.1 * number, means)


def _row(question: str, answer: str, group: str = "", **values: dict[str, float]) -> Conversation:
    named: dict[str, Any] = {kind: (found,) for kind, found in values.items()}
    return Conversation("lab", "", (Message("user", question), Message("assistant", answer)), group=group, **named)


def _write(folder: Storage, rows: list[Conversation], run: Run) -> None:
    """In two files, as a run has several."""
    Path(folder.path).mkdir(parents=True)
    for part, half in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        pq.write_table(to_table(half, run.schema), f"{folder.path}/part-{part}.parquet")
