"""Stage `benchmarks/*`: a run's policy answers a benchmark's questions (Vicuna-80, MT-bench) at chosen dials, in FastChat's answer format.

    python -m jobs.answer PRESET.yaml questions=PATH [others=best] [dials.NAME=VALUE ...] [key.path=value ...]

The policy is the newest one that was promoted. A second turn is asked after the policy's own answer to the first. `jobs.judge` judges the file.
"""

import hashlib
import posixpath
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from actors.generation.sampler import FINISH, TOO_LONG
from data.attributes import AttributeProblem
from data.benchmarks import Question, answer_line, jsonl, read_questions
from data.conversation import Message, from_table
from data.errors import UserError
from data.prompts import Prompt, prompt, prompts_table
from data.selection import CUT_OFF
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample, sampling_settings
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Metrics, Run, Stage, fingerprint_of, log

Answered = Mapping[str, tuple[str, str]]
"""Id of a prompt -> the answer, and how it ended."""


class Answering(Preset):
    """A run, and which questions its policy answers, how."""

    questions: str
    """Question file, a JSON object {question_id, category, turns} a line (FastChat's question.jsonl; any URI)."""
    dials: dict[str, float] = {}
    """What is asked of single attributes, e.g. dials.humor=4."""
    others: Literal["best", "defaults", "unset"] = "best"
    """What is asked of all other attributes: their best, what the endpoint asks by default, or nothing."""
    temperature: float = Field(0, ge=0)
    """0 = greedy, as the paper answers; length, top_k and top_p are those of `sampling`."""
    model_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the model in the answer file, and of the file; null = made of the run and the dials."""
    limit: int = Field(0, ge=0)
    """Only the first so many questions; 0 = all."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        try:
            self.schema_.checked(self.dials)
        except AttributeProblem as problem:
            raise UserError(f"dials: {problem}") from None

    @property
    def requested(self) -> dict[str, float]:
        """All that is asked, in the order of the schema."""
        schema = self.schema_
        values = {"best": schema.best(), "defaults": schema.defaults(), "unset": {}}[self.others] | self.dials
        return schema.checked(values)

    @property
    def model_name(self) -> str:
        """`demo-best-humor4`."""
        return self.model_id or "-".join(
            [self.run, self.others, *(f"{name}{value:g}" for name, value in sorted(self.dials.items()))]
        )

    @property
    def stage_name(self) -> str:
        """A folder for each question file and model."""
        bench = (
            posixpath.basename(self.questions).removesuffix(".gz").removesuffix(".jsonl").removesuffix(".question")
            or "questions"
        )
        return f"benchmarks/{bench}/{self.model_name}/answers"


def stages(preset: Preset) -> list[Stage]:
    assert isinstance(preset, Answering)
    run, last = Run(preset), _last_round(preset)
    # A round that is not judged yet is none; a run without rounds has its first policy.
    needs = tuple(
        dict.fromkeys(["policy", Rounds().promoted(run, last), *([Rounds().promotion(last)] if last else [])])
    )
    return [Stage(preset.stage_name, needs, _settings, partial(_work, last=last), inputs=_inputs, resumes=True)]


def _last_round(preset: Preset) -> int:
    """The last round of the run with a decision, 0 if there is none."""
    rounds = range(1, preset.bootstrap.rounds + 1)
    return max((number for number in rounds if Run(preset).manifest(Rounds().promotion(number))), default=0)


def _settings(preset: Preset) -> object:
    assert isinstance(preset, Answering)
    asked = {
        "requested": preset.requested,
        "temperature": preset.temperature,
        "limit": preset.limit,
        "model": preset.model_name,
    }
    return asked | {"sampling": sampling_settings(preset.sampling), "seed": preset.seed}


def _inputs(run: Run) -> dict[str, str]:
    assert isinstance(run.preset, Answering)
    content = repr(read_questions(run.preset.questions))
    return {"questions": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _work(run: Run, folder: Storage, last: int) -> Metrics:
    """Turn after turn, then the answer file, whole."""
    preset = run.preset
    assert isinstance(preset, Answering)
    asked = read_questions(preset.questions, preset.limit)
    policy = run.folder(Rounds().promoted(run, last))
    dials = ", ".join(f"{name} {value:g}" for name, value in preset.requested.items())
    log(f"answer: {len(asked)} questions of {preset.questions} to {policy.uri} at {dials or 'no dials'}")
    said: list[list[str]] = [[] for _ in asked]
    ends: list[list[str]] = [[] for _ in asked]
    for turn in range(max(len(q.turns) for q in asked)):
        prompts = _prompts(preset, asked, said, turn)
        answers = _ask(run, policy, list(prompts.values()), folder / f"turn-{turn + 1}", turn)
        for number, one in prompts.items():
            text, end = answers[one.id]
            said[number].append(text)
            ends[number].append(end)
    file = folder / f"{preset.model_name}.jsonl"
    now = round(time.time(), 3)
    file.write_bytes(jsonl(answer_line(q, preset.model_name, turns, now) for q, turns in zip(asked, said, strict=True)))
    counts = _counts(asked, said, ends)
    log(f"answer: {', '.join(f'{n} {name}' for name, n in counts.items())} -> {file.uri}")
    too_long = [q.id for q, end in zip(asked, ends, strict=True) if TOO_LONG in end]
    asked_for = {"policy": policy.uri, "model_id": preset.model_name, "requested": preset.requested}
    return {"answers": file.uri, **asked_for, "counts": counts, "too_long": too_long}


def _prompts(
    preset: Answering, asked: Sequence[Question], said: Sequence[Sequence[str]], turn: int
) -> dict[int, Prompt]:
    """What is asked in this turn, by the number of the question."""
    prompts = {}
    for number, question in enumerate(asked):
        if turn < len(question.turns):
            messages = [
                m
                for q, a in zip(question.turns[:turn], said[number], strict=True)
                for m in (Message("user", q), Message("assistant", a))
            ]
            messages.append(Message("user", question.turns[turn]))
            prompts[number] = prompt("benchmark", str(question.id), "", messages, preset.requested, number, preset.seed)
    return prompts


def _ask(run: Run, policy: Storage, prompts: Sequence[Prompt], folder: Storage, turn: int) -> Answered:
    assert isinstance(run.preset, Answering)
    stage = run.folder(run.preset.stage_name)
    write_table(prompts_table(prompts), folder / "prompts")
    what = f"answer turn {turn + 1}"
    sample(
        run,
        what,
        policy,
        folder / "prompts",
        folder / "answers",
        run.preset.temperature,
        fingerprint_of(stage),
        keep_too_long=True,
    )
    found: dict[str, tuple[str, str]] = {}
    for table in (folder / "answers").tables():
        ends = table.column(FINISH).to_pylist()
        found |= {row.id: (row.messages[-1].content, end) for row, end in zip(from_table(table), ends, strict=True)}
    return found


def _counts(asked: Sequence[Question], said: Sequence[Sequence[str]], ends: Sequence[Sequence[str]]) -> dict[str, int]:
    all_ends = [end for found in ends for end in found]
    empty = sum(not text for found in said for text in found)
    return {
        "questions": len(asked),
        "answers": len(all_ends),
        "empty": empty,
        "cut_off": all_ends.count(CUT_OFF),
        "too_long": all_ends.count(TOO_LONG),
    }


def ending(run: Run, manifests: dict[str, Metrics]) -> Metrics:
    (manifest,) = manifests.values()
    return {"run": run.root.uri, "skipped": manifest["skipped"], **manifest["metrics"]}


if __name__ == "__main__":
    main(__doc__, stages, ending, Answering)
