"""One measurement beside what a user would pick instead: a table, and one JSON object as the last line of stdout.

    python -m jobs.bench NAME [key=value ...]

Both sides run by turns in one run on one machine; metrics are medians. A ratio above 1 means that ours is ahead,
except where its name has "growth". Exit code 1: the two sides do not agree, or the real rows are absent.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cluster.settings.errors import SettingsError, did_you_mean
from cluster.settings.help import help_text
from cluster.settings.load import load
from jobs.bench import annotate, annotate_scale, endpoint, pieces, prepare, sample, train, turns
from jobs.bench.environment import NoEnvironment
from jobs.bench.report import Bench, Disagreement, machine
from jobs.bench.rows import NoRealRows
from jobs.bench.servers import NotServed
from jobs.runner.ending import print_last_line

BENCHES: dict[str, Bench] = {
    "annotate": annotate.BENCH,
    "turns": turns.BENCH,
    "annotate_scale": annotate_scale.BENCH,
    "pieces": pieces.BENCH,
    "prepare": prepare.BENCH,
    "train": train.BENCH,
    "sample": sample.BENCH,
    "serve": endpoint.BENCH,
}
PROGRAM = "python -m jobs.bench"


def main(argv: Sequence[str]) -> None:
    """Run the bench that `argv` names."""
    name, words = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--help", "-h"):
        listed = "\n".join(f"  {n}\n      {b.about}" for n, b in BENCHES.items())
        print(f"usage: {PROGRAM} NAME [key=value ...]\n       {PROGRAM} NAME --help\n\n{__doc__}\nBenches:\n\n{listed}")
        return
    if name not in BENCHES:
        _fail(f"unknown bench {name!r}{did_you_mean(name, list(BENCHES))}; there are {', '.join(BENCHES)}", code=2)
    bench = BENCHES[name]
    if {"--help", "-h"} & {*words}:
        print(f"usage: {PROGRAM} {name} [key=value ...]\n\n{bench.about}\n\nSettings:\n\n{help_text(bench.settings)}")
        return
    try:
        settings = load(bench.settings, os.devnull, words)
    except SettingsError as error:
        _fail(str(error), code=2)
    try:
        outcome = bench.run(settings)
    except (NoRealRows, NoEnvironment, NotServed, Disagreement) as error:
        _fail(str(error), code=1)
    print_last_line({"bench": name, "machine": machine(), "ratios": outcome.ratios, "figures": outcome.metrics})


def _fail(message: str, code: int) -> NoReturn:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
