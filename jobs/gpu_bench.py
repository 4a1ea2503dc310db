"""How fast this machine's GPUs train, annotate and sample: Llamas of any size with random weights. Needs no preset.

    python -m jobs.gpu_bench [--sizes 1B,8B] [--device cpu --sizes 10M]

Tokens a second and the share of this machine's own matrix products, for each size and path. A table, then one JSON
object as the last line of stdout; exit code 1 if a path fails, and the others still run.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from jobs.bench.report import print_table
from jobs.gpu_checks.bench import SizeBench
from jobs.gpu_checks.checks import Result, failures, not_run, print_results, run_all
from jobs.gpu_checks.machine import KEEP, NO_RAY, chosen_target, described, parser, ray_check, scratch
from jobs.gpu_checks.sizes import LlamaSize, size_of
from jobs.gpu_checks.target import Target
from jobs.runner.ending import print_last_line
from jobs.runner.stage import log

PROGRAM = "python -m jobs.gpu_bench"


def main(argv: Sequence[str]) -> int:
    """Measure every size; the exit code."""
    command = parser(PROGRAM, __doc__)
    command.add_argument("--sizes", type=_sizes, metavar="SIZE,...", help="e.g. 10M,1B; default: 1B,8B, on a CPU 10M")
    arguments = command.parse_args(argv)
    target = chosen_target(PROGRAM, arguments.device)
    sizes = arguments.sizes or _sizes("1B,8B" if target.on_gpu else "10M")
    machine = described(target)
    log(f"{PROGRAM}: {machine}")
    with scratch("gpu-bench") as folder, contextlib.ExitStack() as stack:
        benches = [SizeBench(target, size, folder / size.name) for size in sizes]
        results = _measured(target, benches, stack, folder / KEEP)
    log("")
    print_results(results)
    log("")
    print_table(("size", "path", "tokens/s", "share of peak"), [line for bench in benches for line in lines(bench)])
    for failure in failures(results):
        print(f"{PROGRAM}: FAILED: {failure}", file=sys.stderr)
    found = {bench.size.name: figures(bench) for bench in benches}
    shares = {name: value for bench in benches for name, value in ratios(bench).items()}
    ended = {"device": target.device, "num_gpus": target.num_gpus, "sizes": found, "failures": failures(results)}
    print_last_line({"bench": "gpu_bench", "machine": machine, "ratios": shares, "figures": ended})
    return 1 if failures(results) else 0


def _measured(
    target: Target, benches: Sequence[SizeBench], stack: contextlib.ExitStack, log_file: Path
) -> list[Result]:
    """Every size, one after the other; Ray stays until `stack` is closed."""
    total = 1 + sum(len(bench.checks()) for bench in benches)
    results = run_all([ray_check(target, stack)], log_file, total)
    has_ray = results[0].state == "ok"
    for bench in benches:
        checks = bench.checks()
        results += run_all(checks, log_file, total, len(results)) if has_ray else not_run(checks, NO_RAY)
        shutil.rmtree(bench.folder, ignore_errors=True)  # room for the next one
    return results


def _sizes(words: str) -> list[LlamaSize]:
    try:
        return [size_of(word) for word in words.split(",")]
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def speeds(bench: SizeBench) -> dict[str, tuple[float, float]]:
    """Path -> tokens a second, share of the peak; what failed is not there."""
    found = {what: (speed.tokens_per_s, speed.share_of_peak) for what, speed in bench.speeds.items()}
    trained = bench.trained
    return ({"training": (trained.tokens_per_s, trained.share_of_peak)} if trained else {}) | found


def lines(bench: SizeBench) -> list[tuple[object, ...]]:
    """Rows of the table."""
    return [(bench.size.name, what, f"{fast:,.0f}", f"{share:.1%}") for what, (fast, share) in speeds(bench).items()]


def ratios(bench: SizeBench) -> dict[str, float]:
    """Shares of the measured peak of matrix products."""
    return {f"{what}_{bench.size.name}_vs_peak": round(share, 3) for what, (_, share) in speeds(bench).items()}


def figures(bench: SizeBench) -> dict[str, Any]:
    """Everything else that was found."""
    memory = {what: speed.peak_bytes for what, speed in bench.speeds.items()}
    if bench.trained:
        memory |= {"training": bench.trained.peak_bytes, "training_planned": round(bench.trained.planned_bytes)}
    return {
        "parameters": bench.size.num_parameters,
        "training": bench.how,
        "tokens_per_s": {what: round(fast, 1) for what, (fast, _) in speeds(bench).items()},
        "memory_bytes": memory,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
