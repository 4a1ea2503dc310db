"""What `jobs.benchmark` left of two settings, two tasks and RewardBench 2, as a report reads it."""

from data.benchmark_metrics import BenchmarkTable, RewardBench2Metrics, SettingScores, TaskScore
from data.quality_metrics import PairAccuracy, SectionAccuracy

SETTINGS = {"plain": {"humor": 0.0, "verbosity": 1.0}, "funny": {"humor": 4.0, "verbosity": 1.0}}
SCORES = (
    SettingScores(
        task="gsm8k",
        metric="exact_match (strict-match)",
        samples=8,
        at={"plain": TaskScore(value=0.5, stderr=0.1), "funny": TaskScore(value=0.25, stderr=None)},
    ),
    SettingScores(task="gsm8k", metric="exact_match (flexible-extract)", samples=8, at={}),
    SettingScores(task="ifeval", metric="acc", samples=9, at={"plain": TaskScore(value=None)}),
)
REWARDBENCH = RewardBench2Metrics(
    prompts=12,
    rejected={"wrong_id": 1},
    unscored=2,
    unpaired=0,
    weights={"helpfulness": 1.0, "humor": 0.0},
    subsets={"Math": PairAccuracy(n=10, accuracy=0.7, low=0.4, high=0.9)},
    score=SectionAccuracy(accuracy=0.7, low=0.4, high=0.9, missing=("Ties",)),
    length=0.3,
    each_attribute={"helpfulness": 0.7, "humor": 0.2},
)
FILE = "benchmarks/alpaca_eval/demo-funny/answers/model_outputs.json"
TABLE = BenchmarkTable(settings=SETTINGS, scores=SCORES, rewardbench=REWARDBENCH, answers=(FILE,))
