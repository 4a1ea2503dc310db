"""What `jobs.benchmark` measures, as records: a predictor on RewardBench 2, and a policy's scores at each setting.

None stands for NaN. Knows no model, no file and no program.
"""

from data.measures import NORMAL_95
from data.quality_metrics import Counts, PairAccuracy, SectionAccuracy
from data.record import Record
from data.stage_metrics import Means, StageMetrics


class RewardBench2Metrics(StageMetrics):
    """Stage `benchmarks/rewardbench`."""

    prompts: int
    rejected: Counts
    """By reason."""
    unscored: int
    """Prompts with an answer that the predictor could not read whole; they count nowhere."""
    unpaired: int
    """Prompts of Ties without the one that belongs to them; they count nowhere."""
    weights: Means
    """Attribute -> its weight in the score of an answer."""
    subsets: dict[str, PairAccuracy]
    score: SectionAccuracy
    """The mean over the subsets."""
    length: float
    """The same score for a model that prefers the longer answer."""
    each_attribute: dict[str, float]
    """The same score for each attribute alone, higher is better."""


class TaskScore(Record):
    """One metric of a task."""

    value: float | None
    stderr: float | None = None
    """Standard error; None = the task has none."""
    interval: tuple[float, float] | None = None
    """95 % interval; None = that of the standard error."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of the 95 % interval; None if there is none."""
        if self.interval or self.value is None or self.stderr is None:
            return self.interval
        return self.value - NORMAL_95 * self.stderr, self.value + NORMAL_95 * self.stderr


class TaskMetrics(StageMetrics):
    """Stage `benchmarks/lm_eval/SETTING/TASK/scores`: one task of lm-eval at one setting of the attributes."""

    task: str
    setting: str
    requested: Means
    """Every attribute's value in the prompts."""
    by: str
    """answers or likelihoods."""
    samples: int
    num_fewshot: int | None
    scores: dict[str, TaskScore]
    """Metric, with its filter if there is one -> its score."""
    versions: dict[str, str]
    """Of the task and of lm-eval."""


class SettingScores(Record):
    """One metric of a task over all settings."""

    task: str
    metric: str
    samples: int
    at: dict[str, TaskScore]
    """Setting -> score."""


class BenchmarkTable(StageMetrics):
    """Stage `benchmarks/table`: score against setting, a judge's among them, and the predictor's result."""

    settings: dict[str, Means]
    """Setting -> the requested value of every attribute."""
    scores: tuple[SettingScores, ...] = ()
    rewardbench: RewardBench2Metrics | None = None
    answers: tuple[str, ...] = ()
    """Files of answers for judges, in the run's folder."""
