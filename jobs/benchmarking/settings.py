"""The settings of `jobs.benchmark`: a run, the settings of the attributes, and the benchmarks. Knows no program."""

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from data.attributes import AttributeProblem
from data.bounds import Count, Temperature, Weight, Workers
from data.errors import UserError
from data.judge_settings import checked_base_url
from data.pairs import pair_weights
from data.record import Record
from data.run_layout import FolderName
from data.uris import Uri, shown_uri
from jobs.evaluation.answers import answers_stage
from jobs.runner.preset import Preset


class BenchmarkEndpoint(Record):
    """The endpoint that serves the run's policy: `python -m serve policy=runs/NAME`."""

    # Where the policy answers does not change what it answers.
    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"base_url", "key_variable"})

    base_url: str = "http://127.0.0.1:8000/v1"
    """The endpoint, with its version."""
    model: str = ""
    """The policy's name there; empty = the first model."""
    key_variable: str | None = None
    """Environment variable with the key of an endpoint that has teams; None = no key needed."""

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        return checked_base_url(url, "benchmark.endpoint.key_variable")


class LmEvalTask(Record):
    """A task of lm-eval."""

    name: FolderName
    """lm-eval's name, such as ifeval, gsm8k or truthfulqa_mc2; of one task or of a group."""
    by: Literal["answers", "likelihoods"] = "answers"
    """answers: the policy writes them. likelihoods: how likely given choices are, as in multiple choice."""
    num_fewshot: Count | None = None
    """Examples before each question; None = the task's own."""
    limit: Count = 0
    """Only the first so many questions; 0 = all."""


class LmEvalSettings(Record):
    """lm-eval, a program of its own that asks the endpoint."""

    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"python", "concurrency"})

    tasks: tuple[LmEvalTask, ...] = ()
    """Each is run at every setting."""
    include_path: str = ""
    """Folder with task files of yours (lm-eval's YAML); their `data_files` may be local. Empty = lm-eval's own tasks,
    whose data it fetches from the hub."""
    python: str = ""
    """Python of the environment that has lm-eval; empty = the one that runs this job."""
    concurrency: Workers = 4
    """Requests at the same time."""
    gen_kwargs: dict[str, Any] = {}
    """Further fields of each request for an answer, such as {max_gen_toks: 512}."""

    @model_validator(mode="after")
    def _tasks(self) -> "LmEvalSettings":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(f"benchmark.lm_eval.tasks has the names {', '.join(names)}; name each task once")
        if "attributes" in self.gen_kwargs:
            raise UserError("benchmark.lm_eval.gen_kwargs has attributes; these are those of benchmark.settings")
        return self


class RewardBenchSettings(Record):
    """RewardBench 2, for the run's predictor."""

    uri: Uri = ""
    """File, folder or glob of {id, prompt, chosen, rejected, subset}: the Parquet file of allenai/reward-bench-2, or
    JSON lines. Empty = the predictor is not tested."""
    limit: Count = 0
    """Only the first so many prompts; 0 = all."""
    weights: dict[str, Weight] = {}
    """Attribute -> weight in the one score of an answer; empty = predictor.pair_weights."""


class AnswerSettings(Record):
    """Answers for a judge: AlpacaEval 2, Arena-Hard, MT-bench and Vicuna-80."""

    files: tuple[Uri, ...] = ()
    """Question files, answered at every setting: AlpacaEval's alpaca_eval.json, question.jsonl of Arena-Hard or of
    FastChat."""
    limit: Count = 0
    """Only the first so many questions; 0 = all."""
    temperature: Temperature = 0
    """0 = greedy; length, top_k and top_p are those of `sampling`."""
    judged: tuple[Uri, ...] = ()
    """Folders that `jobs.judge` leaves (its `output`): win rates and ratings of these very answers join the table. A
    folder without a finished report is none yet."""

    @model_validator(mode="after")
    def _names(self) -> "AnswerSettings":
        if self.judged and not self.files:
            raise UserError(
                "benchmark.answers.judged has folders, but benchmark.answers.files has none of the questions; give both"
            )
        names = [answers_stage(file, "") for file in self.files]
        if twice := [file for file, name in zip(self.files, names, strict=True) if names.count(name) > 1]:
            raise UserError(
                f"benchmark.answers.files has {' and '.join(map(shown_uri, twice))}, whose answers would lie in one "
                "folder; give the files different names"
            )
        return self


class StandardBenchmarks(Record):
    """What `jobs.benchmark` runs."""

    settings: dict[FolderName, dict[str, Weight]] = {}
    """Name -> values of single attributes: the policy is tested at each, such as {plain: {}, funny: {humor: 4}}. Empty
    = one, `others` for all attributes."""
    others: Literal["defaults", "best"] = "defaults"
    """Values of all other attributes: the schema's defaults, or their best."""
    endpoint: BenchmarkEndpoint = BenchmarkEndpoint()
    """Who answers lm-eval."""
    lm_eval: LmEvalSettings = LmEvalSettings()
    """The policy on tasks of lm-eval (IFEval, GSM8K, TruthfulQA and others)."""
    rewardbench: RewardBenchSettings = RewardBenchSettings()
    """The predictor on RewardBench 2."""
    answers: AnswerSettings = AnswerSettings()
    """The policy's answers, written for judges; no endpoint is needed."""

    @property
    def named_settings(self) -> dict[str, dict[str, float]]:
        """At least one."""
        return dict(self.settings) or {self.others: {}}


class Benchmarking(Preset):
    """A run, and the benchmarks of its policy and its predictor."""

    benchmark: StandardBenchmarks = StandardBenchmarks()
    """What is run."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not (self.benchmark.lm_eval.tasks or self.benchmark.rewardbench.uri or self.benchmark.answers.files):
            raise UserError(
                "benchmark names nothing to run; set benchmark.lm_eval.tasks, such as '[{name: ifeval}]', "
                "benchmark.rewardbench.uri to the file of allenai/reward-bench-2, or benchmark.answers.files to files "
                "of questions"
            )
        for name in self.benchmark.settings:
            try:
                self.requested(name)
            except AttributeProblem as problem:
                raise UserError(f"benchmark.settings.{name}: {problem}") from None
        if self.benchmark.rewardbench.uri:
            self.ranking_weights()

    def requested(self, setting: str) -> dict[str, float]:
        """The value of every attribute at a setting; raises AttributeProblem for an unknown one or out of range."""
        schema, values = self.schema_, self.benchmark.named_settings[setting]
        schema.checked(values)
        others = schema.best() if self.benchmark.others == "best" else schema.defaults()
        return schema.checked({**others, **values})

    def ranking_weights(self) -> dict[str, float]:
        """The weight of every attribute in the one score of an answer of RewardBench 2."""
        given = self.benchmark.rewardbench.weights or self.predictor.pair_weights
        return pair_weights(self.schema_, given, "benchmark.rewardbench.weights", self.roster.unpredicted)
