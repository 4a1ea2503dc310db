"""Prove on this machine that everything works on its GPUs: ten minutes, no hub, random weights. Needs no preset.

    python -m jobs.gpu_smoke [--device cpu]

All stages of a run, fused attention against its reference, ZeRO 0 to 3, a training that is killed and goes on, every
engine that is installed, memory against plan, speed as a share of this machine's own matrix products. A table, then one
JSON object as the last line of stdout; exit code 1 if a check fails, and the others still run.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from jobs.gpu_checks.checks import Result, failures, not_run, print_results, run_all
from jobs.gpu_checks.machine import KEEP, NO_RAY, chosen_target, described, parser, ray_check, scratch
from jobs.gpu_checks.smoke import Smoke, amounts
from jobs.runner.ending import print_last_line
from jobs.runner.stage import log

PROGRAM = "python -m jobs.gpu_smoke"


def main(argv: Sequence[str]) -> int:
    """Check this machine; the exit code."""
    arguments = parser(PROGRAM, __doc__).parse_args(argv)
    started, target = time.perf_counter(), chosen_target(PROGRAM, arguments.device)
    machine = described(target)
    log(f"{PROGRAM}: {machine}")
    with scratch("gpu-smoke") as folder, contextlib.ExitStack() as stack:
        smoke = Smoke(target, folder, amounts(target))
        stages, *others = smoke.checks()
        # The run starts a Ray of its own: both at once would share the cores.
        first = [stages, ray_check(target, stack)]
        log_file, total = folder / KEEP, len(first) + len(others)
        results = run_all(first, log_file, total)
        has_ray = results[-1].state == "ok"
        results += run_all(others, log_file, total, len(first)) if has_ray else not_run(others, NO_RAY)
    log("")
    print_results(results)
    for failure in failures(results):
        print(f"{PROGRAM}: FAILED: {failure}", file=sys.stderr)
    found = figures(smoke, results) | {"seconds": round(time.perf_counter() - started, 1)}
    print_last_line({"bench": "gpu_smoke", "machine": machine, "ratios": ratios(smoke), "figures": found})
    return 1 if failures(results) else 0


def ratios(smoke: Smoke) -> dict[str, float]:
    """Shares of the measured peak of matrix products, and measured over planned memory; what failed is not there."""
    found = {f"{what}_vs_peak": speed.share_of_peak for what, speed in smoke.speeds.items()}
    if smoke.trained:
        found["training_vs_peak"] = max(trained.share_of_peak for trained in smoke.trained.values())
        found["memory_vs_plan"] = smoke.over_plan
    return {name: round(value, 3) for name, value in found.items()}


def figures(smoke: Smoke, results: Sequence[Result]) -> dict[str, Any]:
    """Everything else that was found."""
    target, trained = smoke.target, smoke.trained
    return {
        "device": target.device,
        "num_gpus": target.num_gpus,
        "precision": target.precision,
        "parameters": smoke.amounts.size.num_parameters,
        "checks": {r.name: {"state": r.state, "seconds": r.seconds, "found": r.found} for r in results},
        "failures": failures(results),
        "peak_flops": smoke.peaks,
        "tokens_per_s": {what: round(speed.tokens_per_s, 1) for what, speed in smoke.speeds.items()}
        | {f"training_zero_{stage}": round(found.tokens_per_s, 1) for stage, found in trained.items()},
        "memory_bytes": {
            f"zero_{stage}": {"planned": round(found.planned_bytes), "measured": found.peak_bytes}
            for stage, found in trained.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
