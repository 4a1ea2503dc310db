"""The model card beside a model's weights: what it is, how to steer it, its data and its training. Knows no Ray."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from actors.training.settings import LearnerSettings
from cluster.masking import masked
from data.stage_metrics import RowsMetrics, TrainingMetrics
from data.steering_metrics import ReportMetrics
from data.storage import Storage
from jobs.reporting.tables import Cell, Table, as_markdown, shown
from jobs.runner.stage import Run

POLICY = """\
Every request sets its own attributes; the model chooses those that are left out.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
chat = [{{"role": "user", "content": "Tell me about owls."}}]
requested = {attributes}
options = {{"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}}
prompt = tokenizer.apply_chat_template(chat, attributes=requested, **options)
answer = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

`vllm serve` takes the same folder; there each request has `"chat_template_kwargs": {{"attributes": {{...}}}}`.
"""
PREDICTOR = """\
One number per attribute for the last answer of a conversation, in the attribute's own units. Their order is `id2label`
in `config.json`.

```python
from transformers import AutoTokenizer, pipeline

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{{"role": "user", "content": "Tell me about owls."}}, {{"role": "assistant", "content": "Owls hunt at night."}}]
text = tokenizer.apply_chat_template(chat, tokenize=False)
scorer = pipeline("text-classification", model=folder, tokenizer=tokenizer)
# The template contains all special tokens already, and a regression's scores are no probabilities.
scores = scorer([text], top_k=None, function_to_apply="none", add_special_tokens=False)[0]
print({{score["label"]: score["score"] for score in scores}})
```
"""
ADAPTER = """\
Low-rank adapters for the base model below, the embeddings of its new tokens, and the heads of an attribute predictor on
the same base. Every request sets its own attributes; the model chooses those that are left out.

```bash
python -m serve policy={folder}
```

The endpoint puts policy and predictor together from the base model, once, and rates answers with `score: true`. Plain
peft loads the adapters (`adapter_config.json`) onto the base, without the new tokens and without the heads.
"""
LAYER_HEADS = """\
One number per attribute for every answer of a conversation, in the attribute's own units.

The heads read several layers of the backbone, and means over an answer's tokens (`steerlm.heads` in `config.json`).
Plain transformers has no class for such heads: its pipelines refuse the shape of `score.weight`, and `AutoModel` loads
the backbone without heads. The code that trained it loads all of it:

```python
from actors.scoring.predictor import Predictor
from actors.scoring.rater import Rater
from data.conversation import Conversation, Message

predictor = Predictor.load({folder!r})
turns = (Message("user", "Tell me about owls."), Message("assistant", "Owls hunt at night."))
[values_SA] = Rater(predictor, pack_tokens=2048, max_tokens=1024).rate([Conversation("example", "", turns)])
print(dict(zip(predictor.schema.names, values_SA[-1].tolist(), strict=True)))
```
"""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(
    run: Run,
    kind: str,
    settings: LearnerSettings,
    training: TrainingMetrics,
    model: Storage,
    report: ReportMetrics | None = None,
) -> None:
    """`kind` is "policy" or "predictor"; `report` is added once it is known."""
    (model / "README.md").write_bytes(card(run, kind, settings, training, report).encode())


def card(
    run: Run,
    kind: str,
    settings: LearnerSettings,
    training: TrainingMetrics,
    report: ReportMetrics | None = None,
    front: Mapping[str, Any] | None = None,
    folder: str = "FOLDER",
) -> str:
    """The card's text; `kind` may be "adapter", too. `front` is added to the hub's front matter; `folder` is what the
    example loads."""
    preset = run.preset
    base = preset.base.model if kind != "predictor" else preset.predictor.backbone or preset.base.model
    start = base and masked(base)
    is_policy = kind != "predictor"
    parts = [
        front_matter({**_front(is_policy, bool(preset.predictor.heads), start), **(front or {})}),
        f"# {preset.run}: {'a language model with steerable attributes' if is_policy else 'an attribute predictor'}",
        "Made by the SteerLM method ([arXiv 2310.05344](https://arxiv.org/abs/2310.05344)).",
        ADAPTER.format(folder=folder) if kind == "adapter" else _example(run, is_policy, folder),
        *_data(run),
        f"## Training\n\nFrom {start or 'a base model pre-trained here'}, prompt format `{preset.template}`.",
        *_training(settings, training),
        *(_steering(report) if report else ()),
    ]
    return "\n\n".join([*parts, ""])


def front_matter(entries: Mapping[str, Any]) -> str:
    """What the Hugging Face hub reads of a card."""
    return f"---\n{yaml.safe_dump(dict(entries), sort_keys=False, allow_unicode=True)}---\n"


def _front(is_policy: bool, layered: bool, start: str | None) -> dict[str, Any]:
    entries: dict[str, Any] = {"library_name": "transformers"}
    if is_policy or not layered:  # no pipeline of transformers has heads on several layers
        entries["pipeline_tag"] = "text-generation" if is_policy else "text-classification"
    entries["tags"] = ["steerlm"]
    # The hub knows models by its own names; a folder or URI would make the whole front matter invalid.
    if start and HUB_NAME.fullmatch(start) and not os.path.isdir(start):
        entries["base_model"] = start
    return entries


def _example(run: Run, is_policy: bool, folder: str) -> str:
    attributes = {a.name: a.default for a in run.schema.attributes if a.steerable}
    if is_policy:
        return POLICY.format(folder=folder, attributes=attributes)
    return (LAYER_HEADS if run.preset.predictor.heads else PREDICTOR).format(folder=folder)


def _data(run: Run) -> Iterator[str]:
    rows = [[a.name, f"{a.low} to {a.high}", str(a.default), a.better, a.meaning] for a in run.schema.attributes]
    yield from ("## Attributes", _table(["name", "range", "default", "better", "meaning"], rows))
    read = run.metrics("rows", RowsMetrics)
    counts = read.counts if read else {}
    sources = [[s.name, s.format, str(counts.get(s.name, {}).get("rows", "unknown"))] for s in run.preset.rows.sources]
    yield from ("## Data", _table(["source", "format", "rows"], sources))


def _training(settings: LearnerSettings, training: TrainingMetrics) -> Iterator[str]:
    yield _table(["setting", "value"], [[k, str(v)] for k, v in settings.model_dump(mode="json").items()])
    names = ("examples", "epochs", "steps", "tokens", "saved_step", "validation_loss")
    rows = [[name, str(value)] for name in names if (value := getattr(training, name)) is not None]
    rows += [["last training loss", str(point.loss)] for point in training.losses[-1:]]
    yield _table(["metric", "value"], rows)
    if training.heads:
        heads: list[list[Cell]] = [
            [name, ", ".join(fit.blocks), fit.penalty, fit.answers, fit.explained]
            for name, fit in training.heads.items()
        ]
        yield _table(
            ["heads", "read layer/reading", "ridge penalty", "labels", "variance explained, cross-validated"], heads
        )


def _steering(report: ReportMetrics) -> Iterator[str]:
    yield f"## Steering\n\nMeasured {report.measured_by}."
    rows: list[list[Cell]] = []
    for name, curve in report.steering.items():
        pairs = zip(curve.requested, curve.measured, strict=True)
        points = ", ".join(f"{requested:g} → {shown(measured)}" for requested, measured in pairs)
        rows.append([name, points, shown(curve.spearman, unknown="unknown")])
    yield _table(["attribute", "requested → measured", "Spearman"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    return "\n".join(as_markdown(Table("", columns, rows)))
