"""A made-up folder of a finished run: what a report is made from, without any training."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.settings.load import load
from data.conversation import Conversation, Message, to_table
from data.storage import Storage
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

DEMO = str(Path(__file__).resolve().parents[2] / "jobs" / "presets" / "demo.yaml")
NAMES = ("helpfulness", "creativity", "humor", "toxicity", "verbosity")
HOSTILE = "Owls <script>alert(1)</script> & </details> ```hoot``` | [x](javascript:alert(2))"
"""An answer that would be markup, if it were let."""
CURVE = [{"step": step, "loss": 4 / step} for step in range(1, 9)]
TRAINING = {
    "losses": CURVE,
    "validations": CURVE[3::4],
    "saved_step": 8,
    "steps": 8,
    "epochs": 1,
    "num_train": 50,
    "tokens": 1234,
    "train_seconds": 61.2,
}


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
        (run.folder(stage) / "training.json").write_json(TRAINING)
    (run.folder("predictor") / "quality.json").write_json(quality())
    _write_manifests(run)
    (run.folder("report") / "report.json").write_json(report(run))
    return run


def _write_manifests(run: Run) -> None:
    counts = {"read": 22, "rows": 20, "answers": 20, "rated_answers": 20, "duplicate": 1, "rejected: empty_message": 1}
    _manifest(run, "rows", {"counts": {"lab": counts}})
    for stage in ("base", "predictor", "annotated", "policy", "report"):
        _manifest(run, stage, {"counts": {"answers": 20}})
    for stage in ("samples", "rated", "policy"):
        _manifest(run, f"bootstrap-1/{stage}", {"counts": {"answers": 20}})
    _manifest(run, "bootstrap-1/selected", {"counts": {"samples": 40, "kept": 37, "duplicate": 3}})
    fell = ["mean Spearman 0.900 -> 0.700"]
    _manifest(run, "bootstrap-1/promotion", {"promoted": False, "fell": fell, "policy": "policy"})


def report(run: Run) -> dict[str, Any]:
    """All parts of a `report.json`."""
    best, judge = run.schema.best(), {"n": 900, "spearman": 0.9444, "mae": 0.1515, "slope": 0.9}
    combined = {"requested": {"humor": 4, "verbosity": 1}, "measured": {"humor": 3.81, "verbosity": 1.23}}
    slopes = [[0.97 if a == b else -0.0612 for a in NAMES] for b in NAMES]
    return {
        "policy": (run.folder("policy")).uri,
        "measured_by": "exactly, from the text",
        "steering": _steering(),
        "at_best_settings": {name: value * 0.9 for name, value in best.items()},
        "requested_best": best,
        "cross_talk": {"attributes": list(NAMES), "measured": list(NAMES), "slope": slopes},
        "combined": [combined | {"mean_absolute_gap": 0.21, "n": 30}],
        "dialogue": {"humor": {"first": [0, 4], "second": [4, 0], "measured_second": [3.77, 0.13], "n": 20}},
        "judge": {name: judge | {"everywhere": {"spearman": 0.61, "ceiling": 0.66}} for name in NAMES},
        "judge_note": "All attributes reach Spearman 0.9.",
        "length": {name: {"spearman_words": 0.3333, "partial_spearman": -0.0456} for name in NAMES},
        "rounds": [_round(0, True), _round(1, False)],
    }


def _steering() -> dict[str, Any]:
    """The last attribute does not follow the request."""
    row = {"requested": [0, 1, 2, 3, 4], "measured": [0.1, 1, 2.2, 2.9, 3.9]}
    row |= {"low": [0, 0.9, 2, 2.8, 3.7], "high": [0.2, 1.1, 2.4, 3, 4], "n": 150, "spearman": 0.9321}
    row |= {"monotonic": True, "slope": 0.96, "reached": [0.1, 3.9], "mean_absolute_gap": 0.1234}
    flat = row | {"measured": [2, 2, None, 2, 2], "spearman": None, "monotonic": False}
    return dict.fromkeys(NAMES[:4], row) | {NAMES[4]: flat}


def quality() -> dict[str, Any]:
    marks = [{"n": 10, "predicted": v + 0.1, "human": v, "se": 0.1 if v else None} for v in range(5)]
    row = {"n": 50, "mae": 0.6462, "rmse": 0.8, "spearman": 0.7864, "reliability": marks, "calibrated": {"mae": 0.6363}}
    row |= {"baselines": {"mean": {"mae": 1.1561}, "length": {"spearman": 0.44}}}
    row |= {
        "truth": {
            "predictor": {"n": 50, "mae": 0.4, "spearman": 0.92},
            "one_rater": {"n": 50, "mae": 0.43, "spearman": 0.87},
        }
    }
    return {"answers": {"rated": 100, "held_out": 50, "unscored": 0}, "attributes": dict.fromkeys(NAMES, row)}


def _round(number: int, promoted: bool) -> dict[str, Any]:
    means = dict.fromkeys(NAMES, 2.0 + 0.1 * number)
    drift = {
        "texts": 40,
        "words": 31.5,
        "distinct_1": 0.2,
        "distinct_2": 0.5 - 0.1 * number,
        "predicted": means,
        "true": means,
    }
    return {
        "round": number,
        "promoted": promoted,
        "mean_spearman": 0.9 - 0.2 * number,
        "leading_gap_at_best": 0.1,
        "drift": drift,
    }


def _row(question: str, answer: str, group: str = "", **values: dict[str, float]) -> Conversation:
    named: dict[str, Any] = {kind: (found,) for kind, found in values.items()}
    return Conversation("lab", "", (Message("user", question), Message("assistant", answer)), group=group, **named)


def _write(folder: Storage, rows: list[Conversation], run: Run) -> None:
    """In two files, as a run has several."""
    Path(folder.path).mkdir(parents=True)
    for part, half in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        pq.write_table(to_table(half, run.schema), f"{folder.path}/part-{part}.parquet")


def _manifest(run: Run, stage: str, metrics: dict[str, Any]) -> None:
    manifest = {
        "stage": stage,
        "fingerprint": f"{len(stage):016x}",
        "seconds": 12.5,
        "finished": "2026-11-22T12:00:00Z",
    }
    manifest |= {"description": {"needs": {"rows": "0" * 16}}, "metrics": metrics, "versions": {"ray": "2.60.0"}}
    (run.folder(stage) / "manifest.json").write_json(manifest)
