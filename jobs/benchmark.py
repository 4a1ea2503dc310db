"""Public benchmarks by their standard names: the policy at any setting of the attributes, and the predictor.

    python -m jobs.benchmark PRESET.yaml benchmark.lm_eval.tasks='[{name: ifeval}]' [key.path=value ...]
    python -m jobs.benchmark PRESET.yaml benchmark.rewardbench.uri=FILE

lm-eval (IFEval, GSM8K, TruthfulQA, ...) asks the endpoint that serves the run's policy. RewardBench 2 tests the
predictor. AlpacaEval 2 and Arena-Hard get answers for any judge (`benchmark.answers`). The table is score against
setting (`benchmark.settings`). A finished pair of task and setting is not run again.
"""

from collections.abc import Mapping
from typing import Any

from jobs.benchmarking import rewardbench
from jobs.benchmarking.judged_answers import answer_stages
from jobs.benchmarking.lm_evaluation import lm_eval_stages
from jobs.benchmarking.settings import Benchmarking
from jobs.benchmarking.table import NAME, table_stage
from jobs.reporting.page import HTML
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Performed, Run, Stage


def stages(preset: Preset) -> list[Stage]:
    """lm-eval first: if its program or the endpoint is missing, nothing has been scored for nothing."""
    assert isinstance(preset, Benchmarking)
    predictor = [rewardbench.STAGE] if preset.benchmark.rewardbench.uri else []
    made = [*lm_eval_stages(preset), *predictor, *answer_stages(preset)]
    return [*made, table_stage([stage.name for stage in made])]


def ending(run: Run, stages: Mapping[str, Performed]) -> dict[str, Any]:
    skipped = sum(done.skipped for name, done in stages.items() if name != NAME)
    counts = {"benchmarks": len(stages) - 1, "skipped": skipped}
    return {"run": run.root.uri, **counts, "page": (run.folder(NAME) / HTML).uri, **stages[NAME].manifest.metrics}


if __name__ == "__main__":
    main(__doc__, stages, ending, Benchmarking)
