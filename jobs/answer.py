"""Stage `benchmarks/*`: a run's policy answers the questions of a benchmark (Vicuna-80, MT-bench, AlpacaEval).

    python -m jobs.answer PRESET.yaml questions=PATH [others=best] [requested.NAME=VALUE ...] [key.path=value ...]

The policy is the newest promoted one. A second turn follows its own answer to the first. `jobs.judge` judges the file,
which has FastChat's format. AlpacaEval and Arena-Hard get the file that their own programs read, too.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from data.attributes import AttributeProblem
from data.bounds import Count, Temperature, Weight
from data.errors import UserError
from data.run_layout import FolderName
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from data.uris import Uri
from jobs.evaluation.answers import Asked, answer_questions, answers_stage, questions_checksum
from jobs.pipelines.sample import sampling_settings
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.rounds import newest_policy
from jobs.runner.stage import Performed, Run, Stage


class Answering(Preset):
    """A run, the questions that its policy answers, and the requested attributes."""

    RENAMED = {**Preset.RENAMED, "dials": "requested"}

    questions: Uri
    """Question file (any URI): FastChat's question.jsonl, AlpacaEval's alpaca_eval.json or Arena-Hard's
    question.jsonl."""
    requested: dict[str, Weight] = {}
    """Requested values of single attributes, e.g. requested.humor=4."""
    others: Literal["best", "defaults", "unset"] = "best"
    """Requested of all other attributes: their best, the endpoint's defaults, or nothing."""
    temperature: Temperature = 0
    """0 = greedy, as the paper answers; length, top_k and top_p are those of `sampling`."""
    model_id: FolderName | None = None
    """Name of the model in the answer file, and of the file; null = from the run and the requested values."""
    limit: Count = 0
    """Only the first so many questions; 0 = all."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        try:
            self.schema_.checked(self.requested)
        except AttributeProblem as problem:
            raise UserError(f"requested: {problem}") from None

    @property
    def all_requested(self) -> dict[str, float]:
        """All requested values, in the order of the schema."""
        schema = self.schema_
        values = {"best": schema.best(), "defaults": schema.defaults(), "unset": {}}[self.others] | self.requested
        return schema.checked(values)

    @property
    def model_name(self) -> str:
        """`demo-best-humor4`."""
        values = [f"{name}{value:g}" for name, value in sorted(self.requested.items())]
        values += [f"guidance{self.sampling.guidance:g}"] if self.sampling.guidance is not None else []
        return self.model_id or "-".join([self.run, self.others, *values])

    @property
    def stage_name(self) -> str:
        """A folder for each question file and model."""
        return answers_stage(self.questions, self.model_name)


def stages(preset: Preset) -> list[Stage]:
    assert isinstance(preset, Answering)
    policy, needs = newest_policy(Run(preset))
    return [Stage(preset.stage_name, needs, _settings, partial(_work, policy=policy), inputs=_inputs, resumes=True)]


def _settings(preset: Preset) -> object:
    assert isinstance(preset, Answering)
    answering = {"requested": preset.all_requested, "temperature": preset.temperature, "limit": preset.limit}
    sampling = {"sampling": sampling_settings(preset.sampling), "seed": preset.seed}
    return answering | {"model": preset.model_name} | sampling


def _inputs(run: Run) -> dict[str, str]:
    assert isinstance(run.preset, Answering)
    return {"questions": questions_checksum(run.preset.questions)}


def _work(run: Run, folder: Storage, policy: str) -> AnswersMetrics:
    preset = run.preset
    assert isinstance(preset, Answering)
    asked = Asked(preset.questions, preset.limit, preset.all_requested, preset.temperature, preset.model_name)
    return answer_questions(run, folder, run.folder(policy), asked)


def ending(run: Run, stages: Mapping[str, Performed]) -> dict[str, Any]:
    (done,) = stages.values()
    return {"run": run.root.uri, "skipped": done.skipped, **done.manifest.metrics}


if __name__ == "__main__":
    main(__doc__, stages, ending, Answering)
