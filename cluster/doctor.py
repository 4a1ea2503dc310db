"""Is the cluster fit for a preset? Every node is checked; every failure comes with its fix.

    python -m cluster.doctor PRESET.yaml [key.path=value ...] [--job NAME]

Exit code 0 = fit, 1 = not, 2 = an error in the preset. The cluster is the one that RAY_ADDRESS names (`ray job submit`
sets it), or this machine without one. Checked are nodes, versions, clocks, shared memory, GPUs, ports between nodes,
storage writable from every node, models and rows readable, resources for every stage, and token mode.
`--job` checks one job's stages only, e.g. annotate; by default those of jobs.run.
"""

import argparse
import sys
from collections.abc import Sequence

from cluster.checks import Finding, examined
from cluster.connect import Unreachable, connect
from cluster.masking import CredentialFound, mask_streams
from cluster.needs import NotUnderstood, needs_of

PROGRAM = "python -m cluster.doctor"


def table(found: Sequence[Finding]) -> str:
    """A line each, and the remedy below those that are not good."""
    width = max(len(f.what) for f in found)
    lines = []
    for finding in found:
        lines.append(f"{'ok  ' if finding.good else 'FAIL'}  {finding.what:{width}}  {finding.found}")
        if not finding.good and finding.remedy:
            lines.append(f"      {'':{width}}  -> {finding.remedy}")
    bad = sum(not f.good for f in found)
    return "\n".join([*lines, f"{len(found)} checks, {bad} to fix" if bad else f"{len(found)} checks, all good"])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="PRESET.yaml [key.path=value ...]")
    parser.add_argument("--job", default="run", help="whose stages are meant (default: run, all of them)")
    mask_streams()
    arguments = parser.parse_args(argv)
    try:
        needs = needs_of(arguments.job, arguments.words)
    except (NotUnderstood, CredentialFound) as problem:
        print(problem, file=sys.stderr)
        return 2
    try:
        with connect(needs.num_cpus, dashboard=True) as cluster:
            print(f"{cluster}\nrun {needs.run}, storage {needs.storage}", flush=True)
            found = examined(needs, cluster.dashboard)
    except Unreachable as problem:
        found = [Finding("Ray", False, str(problem))]
    print(table(found))
    return 0 if all(f.good for f in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
