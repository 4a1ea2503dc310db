"""Stage `benchmarks/*`: a run's policy answers the questions of a benchmark (Vicuna-80, MT-bench) for FastChat.

    python -m jobs.answer PRESET.yaml questions=PATH [others=best] [requested.NAME=VALUE ...] [key.path=value ...]

The policy is the newest promoted one. A second turn follows its own answer to the first. `jobs.judge` judges the file.
"""

import hashlib
import posixpath
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from data.attributes import AttributeProblem
from data.benchmarks import Question, answer_line, jsonl, read_questions
from data.bounds import Count, Temperature, Weight
from data.conversation import Message, from_table
from data.errors import UserError
from data.prompts import Prompt, prompt, prompts_table
from data.run_layout import FolderName
from data.selection import CUT_OFF, FINISH, TOO_LONG
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from data.uris import Uri
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample, sampling_settings
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.rounds import newest_policy
from jobs.runner.stage import Performed, Run, Stage, fingerprint_of, log

Answered = Mapping[str, tuple[str, str]]
"""Id of a prompt -> the answer, and how it ended."""


class Answering(Preset):
    """A run, the questions that its policy answers, and the requested attributes."""

    RENAMED = {**Preset.RENAMED, "dials": "requested"}

    questions: Uri
    """Question file, a JSON object {question_id, category, turns} a line (FastChat's question.jsonl; any URI)."""
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
        file = posixpath.basename(self.questions)
        bench = file.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".question")
        return f"benchmarks/{bench or 'questions'}/{self.model_name}/answers"


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
    content = repr(read_questions(run.preset.questions))
    return {"questions": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _work(run: Run, folder: Storage, policy: str) -> AnswersMetrics:
    """Answer turn after turn, then write the whole answer file."""
    preset = run.preset
    assert isinstance(preset, Answering)
    questions = read_questions(preset.questions, preset.limit)
    model = run.folder(policy)
    values = ", ".join(f"{name} {value:g}" for name, value in preset.all_requested.items()) or "nothing requested"
    log(f"answer: {len(questions)} questions of {preset.questions} to {model.uri} with {values}")
    texts: list[list[str]] = [[] for _ in questions]
    ends: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(q.turns) for q in questions)):
        prompts = _prompts(preset, questions, texts, turn)
        answers = _ask(run, model, list(prompts.values()), folder / f"turn-{turn + 1}", turn)
        for number, one in prompts.items():
            text, end = answers[one.id]
            texts[number].append(text)
            ends[number].append(end)
    file = folder / f"{preset.model_name}.jsonl"
    now = round(time.time(), 3)
    pairs = zip(questions, texts, strict=True)
    file.write_bytes(jsonl(answer_line(question, preset.model_name, turns, now) for question, turns in pairs))
    counts = _counts(questions, texts, ends)
    log(f"answer: {', '.join(f'{n} {name}' for name, n in counts.items())} -> {file.uri}")
    return AnswersMetrics(
        answers=file.uri,
        policy=model.uri,
        model_id=preset.model_name,
        requested=preset.all_requested,
        counts=counts,
        too_long=tuple(q.id for q, end in zip(questions, ends, strict=True) if TOO_LONG in end),
    )


def _prompts(
    preset: Answering, questions: Sequence[Question], texts: Sequence[Sequence[str]], turn: int
) -> dict[int, Prompt]:
    """The prompts of this turn, by the number of the question."""
    prompts, values = {}, preset.all_requested
    for number, question in enumerate(questions):
        if turn < len(question.turns):
            earlier = zip(question.turns[:turn], texts[number], strict=True)
            messages = [m for q, a in earlier for m in (Message("user", q), Message("assistant", a))]
            messages.append(Message("user", question.turns[turn]))
            prompts[number] = prompt("benchmark", str(question.id), "", messages, values, number, preset.seed)
    return prompts


def _ask(run: Run, policy: Storage, prompts: Sequence[Prompt], folder: Storage, turn: int) -> Answered:
    assert isinstance(run.preset, Answering)
    stage = run.folder(run.preset.stage_name)
    write_table(prompts_table(prompts), folder / "prompts")
    what = f"answer turn {turn + 1}"
    prompts_in, answers_in, temperature = folder / "prompts", folder / "answers", run.preset.temperature
    sample(run, what, policy, prompts_in, answers_in, temperature, fingerprint_of(stage), keep_too_long=True)
    found: dict[str, tuple[str, str]] = {}
    for table in (folder / "answers").tables():
        ends = table.column(FINISH).to_pylist()
        found |= {row.id: (row.messages[-1].content, end) for row, end in zip(from_table(table), ends, strict=True)}
    return found


def _counts(
    questions: Sequence[Question], texts: Sequence[Sequence[str]], ends: Sequence[Sequence[str]]
) -> dict[str, int]:
    all_ends = [end for found in ends for end in found]
    counts = {
        "questions": len(questions),
        "answers": len(all_ends),
        "empty": sum(not t for found in texts for t in found),
    }
    return counts | {"cut_off": all_ends.count(CUT_OFF), "too_long": all_ends.count(TOO_LONG)}


def ending(run: Run, stages: Mapping[str, Performed]) -> dict[str, Any]:
    (done,) = stages.values()
    return {"run": run.root.uri, "skipped": done.skipped, **done.manifest.metrics}


if __name__ == "__main__":
    main(__doc__, stages, ending, Answering)
