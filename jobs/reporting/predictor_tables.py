"""What a predictor is worth, as aligned text: the figures of `jobs.evaluation`'s predictor files in lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from jobs.runner.stage import Metrics

Cell = str | int | float | None


def aligned(header: Sequence[str], rows: Sequence[Sequence[Cell]], digits: int = 2) -> list[str]:
    """Lines of equal columns: the first to the left, the others to the right; None is "-"."""
    texts = [list(header), *([_text(cell, digits) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(header))]
    return [
        "  ".join(
            t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    ]


def _text(cell: Cell, digits: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{round(cell, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.00"
    return f"{cell:,}" if isinstance(cell, int) else cell


def quality_lines(metrics: Metrics) -> Iterator[str]:
    """The tables of `quality.json`: errors beside baselines, the truth where it is known, reliability, collinearity."""
    attributes = metrics["attributes"]
    counts = metrics["answers"]
    yield f"predictor, on {counts['held_out']:,} rated answers it never saw ({counts['unscored']:,} of them unscored); errors in points of the scale"
    yield from _errors(attributes)
    if any("truth" in row for row in attributes.values()):
        yield "against the truth, on the same answers: the predictor, and the rater it learned from"
        yield from _truth(attributes)
    yield "calibration: the mean of people's values by decile of the predicted value (predicted -> human)"
    yield from _reliability(attributes)
    yield f"collinearity of people's values, Spearman (answers with both), of {counts['rated']:,} rated answers"
    yield from _collinearity(metrics["collinearity"])


def _errors(attributes: Metrics) -> list[str]:
    header = [
        "attribute",
        "n",
        "MAE",
        "calibrated",
        "of the mean",
        "RMSE",
        "calibrated",
        "of the mean",
        "Pearson",
        "Spearman",
        "of the length",
    ]
    rows = []
    for name, row in attributes.items():
        mean, length = row["baselines"]["mean"], row["baselines"]["length"]
        # Uncalibrated scores are the calibrated ones where calibration changes nothing.
        calibrated = row.get("calibrated", row)
        pairs = [f.get(key) for key in ("mae", "rmse") for f in (row, calibrated, mean)]
        rows.append([name, row["n"], *pairs, row.get("pearson"), row.get("spearman"), length["spearman"]])
    return aligned(header, rows)


def _truth(attributes: Metrics) -> list[str]:
    header = ["attribute", "n", "MAE", "of one rater", "RMSE", "of one rater", "Spearman", "of one rater"]
    rows = []
    for name, row in attributes.items():
        truth = row.get("truth", {"predictor": {"n": 0}, "one_rater": {"n": 0}})
        pairs = [truth[who].get(key) for key in ("mae", "rmse", "spearman") for who in ("predictor", "one_rater")]
        rows.append([name, truth["predictor"]["n"], *pairs])
    return aligned(header, rows)


def _reliability(attributes: Metrics) -> list[str]:
    bins = {name: row["reliability"] for name, row in attributes.items()}
    width = max((len(b) for b in bins.values()), default=0)
    rows = []
    for name, found in bins.items():
        cells = [f"{b['predicted']:.2f}->{b['human']:.2f}" for b in found]
        sizes = sorted(b["n"] for b in found)
        rows.append([name, f"{sizes[0]}-{sizes[-1]}" if sizes else "0", *cells, *[""] * (width - len(cells))])
    return aligned(["attribute", "n each", *(str(i + 1) for i in range(width))], rows)


def _collinearity(metrics: Metrics) -> list[str]:
    names = metrics["names"]
    rows = []
    for name, values, counts in zip(names, metrics["spearman"], metrics["n"], strict=True):
        rows.append([name, *(f"{_text(r, 2)} ({n})" for r, n in zip(values, counts, strict=True))])
    return aligned(["", *names], rows)


def pair_lines(metrics: Mapping[str, Metrics]) -> Iterator[str]:
    """One line a set of pairs, at least one: who is right how often, with the 95 % interval."""
    yield "pairs: share in which the answer that people preferred scores higher, ties half (95 % interval)"
    rows = []
    for name, row in metrics.items():
        rows.append(
            [
                name,
                row["predictor"]["n"],
                *(_share(row[who]) for who in ("predictor", "length")),
                row["unscored"],
                sum(row["rejected"].values()),
            ]
        )
    yield from aligned(["set", "n", "predictor", "longer answer", "unscored", "broken"], rows)
    for name, row in metrics.items():
        parts = [(f"  {part}", found) for part, found in row.get("subsets", {}).items()] + list(
            row.get("sections", {}).items()
        )
        if parts:
            yield from aligned(
                [name, "n", "predictor"], [[part, found.get("n"), _share(found)] for part, found in parts]
            )
    weights = next(iter(metrics.values()))["weights"]
    yield "  score of an answer: " + " ".join(f"{weight:+.2f} {name}" for name, weight in weights.items() if weight)


def _share(row: Metrics) -> str | None:
    return f"{row['accuracy']:.3f} ({row['low']:.3f}-{row['high']:.3f})" if "accuracy" in row else None


def judge_lines(metrics: Mapping[str, Metrics]) -> Iterator[str]:
    """One block a set of judged answers: Spearman and Pearson of the score, of each attribute and of the length, with 95 % intervals."""
    for name, row in metrics.items():
        yield f"{name}: agreement with the judge on {row['score']['n']:,} answers ({row['unscored']:,} unscored), 95 % intervals"
        rows = [[who, _correlation(found, "spearman"), _correlation(found, "pearson")] for who, found in _who(row)]
        yield from aligned(["", "Spearman", "Pearson"], rows)


def _who(row: Metrics) -> list[tuple[str, Metrics]]:
    return [("score", row["score"]), *row["each_attribute"].items(), ("length", row["length"])]


def _correlation(found: Metrics, kind: str) -> str | None:
    r, low, high = (found[f"{kind}{end}"] for end in ("", "_low", "_high"))
    return None if r is None else f"{r:.3f}" if low is None else f"{r:.3f} ({low:.3f} to {high:.3f})"
