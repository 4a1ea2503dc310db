"""What differs between two runs: settings, stages, rows, labels, models and metrics. Changes nothing, starts no Ray.

    python -m jobs.diff RUN RUN [key.path=value ...]      e.g. runs/demo s3://bucket/runs/demo tolerance=0.01

RUN is a run's folder, STORAGE/RUN. Manifests and digests are compared first, so that equal rows are not read. Times,
rates and memory are shown and count for nothing. Exit code: 0 = equal, 1 = the runs differ, 2 = a mistake. The last
line is one JSON object.
"""

import os
import sys
from collections.abc import Sequence

from cluster.errors import ClusterError
from cluster.masking import mask_streams
from cluster.settings.help import help_text
from cluster.settings.load import load
from data.errors import UserError, is_user_error, sentence
from jobs.diffing.report import as_json, lines
from jobs.diffing.runs import found_runs
from jobs.diffing.settings import DiffSettings
from jobs.diffing.stages import stage_diffs
from jobs.runner.ending import print_last_line

PROGRAM = "python -m jobs.diff"
USAGE = f"usage: {PROGRAM} RUN RUN [key.path=value ...]"


def main(argv: Sequence[str]) -> int:
    mask_streams()
    if "--help" in argv or "-h" in argv:
        print(f"{USAGE}\n\n{__doc__}\nSettings, as key.path=value:\n\n{help_text(DiffSettings)}")
        return 0
    try:
        return _differ(argv)
    except Exception as error:
        if not (is_user_error(error) or isinstance(error, ClusterError)):
            raise
        print(f"{PROGRAM}: {sentence(error)}", file=sys.stderr)
        return 2


def _differ(argv: Sequence[str]) -> int:
    flags = [word for word in argv if word.startswith("-")]
    if flags or len(argv) < 2:
        raise UserError(f"{f'unknown flag {flags[0]}' if flags else 'the first two words must be runs'}; {USAGE}")
    settings = load(DiffSettings, os.devnull, argv[2:])
    a, b = found_runs(*argv[:2])
    stages = stage_diffs(a, b, settings)
    print("\n".join(lines(a, b, stages, settings)))
    found = as_json(a, b, stages)
    print_last_line(found)
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
