"""The same examples through our training and TRL's, both judged by transformers alone. Knows no rounds, no ratios."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from actors.baselines.pipelines import mean_loss
from actors.modeling.policy import PolicyTask
from actors.modeling.settings import SmallModel
from actors.training.examples import ConversationExamples, ExampleSpec
from actors.training.settings import LearnerSettings
from cluster.connect import REPOSITORY
from data.bounds import Positive, Size, TokenBudget
from data.conversation import Conversation, to_table
from data.examples import Example, Examples
from data.loader import Corpus
from data.record import Record
from data.stage_metrics import TrainingMetrics
from data.storage import Storage
from jobs.bench.environment import call
from jobs.bench.rows import SCHEMA, random_policy
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table

TRL_SFT = REPOSITORY / "actors" / "baselines" / "trl_sft.py"
TRL_ROWS = "trl.parquet"


class Recipe(Record):
    """What both sides do alike."""

    learning_rate: Positive
    """The same for all steps: schedules of the same name differ in their first step."""
    pack_tokens: TokenBudget
    packs_per_step: Size
    max_tokens: TokenBudget


@dataclass(frozen=True)
class Inputs:
    """What all sides start from."""

    start: str
    """A policy folder: weights, tokenizer."""
    folder: Path
    """Has `examples/`, as `Tokenizing` leaves them, and the same for TRL in `trl.parquet`."""
    num_examples: int
    tokens: int
    targets: int
    held: list[Example]

    @property
    def examples(self) -> Corpus:
        return Corpus.of(Storage(str(self.folder / "examples")))


@dataclass(frozen=True)
class Trained:
    """The result of one training."""

    tokens_per_cpu_s: float
    """Of the trained ones."""
    cpu_seconds: float
    steps: int
    loss: float
    """Of the held-out answers, in nats a token."""


def make_inputs(
    model: SmallModel, rows: list[Conversation], held: list[Conversation], max_tokens: int, folder: Path
) -> Inputs:
    """A random-weight policy, and both sets of rows as its tokens; rows longer than `max_tokens` are left out."""
    start = random_policy(str(folder), model, [*rows, *held])
    maker = ConversationExamples(ExampleSpec(start, SCHEMA, "steerlm", max_tokens), answers_only=True)
    table = maker(to_table(rows, SCHEMA))
    write_table(table, Storage(str(folder / "examples")))
    train, judged = Examples([table]), Examples([maker(to_table(held, SCHEMA))])
    found = [train[i] for i in range(len(train))]
    columns = {
        "input_ids": [e.ids_T.tolist() for e in found],
        "completion_mask": [e.trained_T.astype(int).tolist() for e in found],
    }
    pq.write_table(pa.table(columns), folder / TRL_ROWS)
    targets = int(sum(e.trained_T.sum() for e in found))
    return Inputs(start, folder, len(found), int(train.lengths.sum()), targets, [judged[i] for i in range(len(judged))])


def fit_policy(start: str, learner: LearnerSettings, examples: Corpus, output: Path) -> TrainingMetrics:
    """Our training, from the policy at `start`; `output` names it and receives the model."""
    return fit(output.name, PolicyTask(start, SCHEMA, "steerlm"), learner, examples, Storage(str(output)))


def train_ours(inputs: Inputs, recipe: Recipe, precision: Literal["fp32", "bf16"], seed: int) -> Trained:
    """One Ray Train worker, DeepSpeed, one thread."""
    output = inputs.folder / f"ours-{precision}-{seed}"
    learner = LearnerSettings(
        precision=precision,
        zero_stage=0,
        seed=seed,
        schedule="constant_with_warmup",
        warmup=0,
        **recipe.model_dump(),
    )
    metrics = fit_policy(inputs.start, learner, inputs.examples, output)
    assert metrics.target_weight == inputs.targets, "an example was lost"
    return _judged(inputs, metrics.steps, metrics.cpu_seconds, output)


def train_trl(inputs: Inputs, recipe: Recipe, arguments: dict[str, Any], python: Path, name: str, seed: int) -> Trained:
    """One process of SFTTrainer, one thread; `arguments` are SFTConfig's: how it batches."""
    output = inputs.folder / f"{name.replace(' ', '-')}-{seed}"
    alike = {
        "max_length": recipe.max_tokens,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "seed": seed,
    }
    output.mkdir()
    paths = {"model": inputs.start, "rows": str(inputs.folder / TRL_ROWS), "output": str(output)}
    settings = paths | {"arguments": alike | arguments}
    (output / "settings.json").write_text(json.dumps(settings))
    call(python, TRL_SFT, str(output / "settings.json"))
    metrics = json.loads((output / "metrics.json").read_text())
    return _judged(inputs, metrics["steps"], metrics["cpu_seconds"], output)


def _judged(inputs: Inputs, steps: int, cpu_seconds: float, output: Path) -> Trained:
    loss = mean_loss(str(output / "model"), inputs.held)
    return Trained(round(inputs.targets / cpu_seconds, 1), round(cpu_seconds, 2), steps, round(loss, 4))
