"""Time, cost and memory of annotating a corpus and training a policy at the size of the paper, by arithmetic alone.

    python -m jobs.plan_scale [key.path=value ...]      e.g. annotate.num_gpus=512 train.parameters=7e10

A table tells every pass over the rows, and which one bounds the whole. Every constant is a setting; the help of a
measured one names the bench. The last line is one JSON object.
"""

import json
import os
import sys

from cluster.settings.errors import SettingsError
from cluster.settings.help import help_text
from cluster.settings.load import load
from jobs.planning.passes import outlooks, table
from jobs.planning.settings import ScalePlan
from jobs.planning.steps import annotation, problems, training


def main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(f"{__doc__}\nSettings, as key.path=value:\n\n{help_text(ScalePlan)}")
        return 0
    try:
        scale = load(ScalePlan, os.devnull, argv)
    except SettingsError as problem:
        print(f"python -m jobs.plan_scale: {problem}", file=sys.stderr)
        return 2
    parts = {"annotate": list(annotation(scale)), "train": list(training(scale))}
    a, t, gpu = scale.annotate, scale.train, scale.gpu.name
    titles = {
        "annotate": f"Annotating {a.conversations:,.0f} conversations on {a.num_gpus} x {gpu}",
        "train": f"Training {t.parameters / 1e9:g} B parameters on {t.num_gpus} x {gpu}",
    }
    for name, lines in parts.items():
        print(titles[name])
        for what, text, _ in lines:
            print(f"  {what:42}  {text}")
    found = outlooks(scale)
    print("\nEvery pass over the rows, by the rates in `prepare`, `passes` and `annotate` (--help)")
    print("\n".join(table(found)))
    wrong = problems(scale)
    for sentence in wrong:
        print(f"PROBLEM: {sentence}")
    numbers = {name: {what: round(value, 4) for what, _, value in lines} for name, lines in parts.items()}
    print(json.dumps(numbers | {"passes": [o.as_json() for o in found], "problems": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
