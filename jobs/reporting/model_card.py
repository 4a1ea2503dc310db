"""The model card beside a model's weights: what it is, how to steer it, what it was made from and how. Knows no Ray."""

import os
import re
from collections.abc import Iterator

import yaml

from actors.training.settings import LearnerSettings
from data.storage import Storage
from jobs.runner.stage import Metrics, Run

POLICY = """\
Every request sets its own dials; those it leaves out are the model's to choose.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
chat = [{{"role": "user", "content": "Tell me about owls."}}]
dials = {attributes}
prompt = tokenizer.apply_chat_template(chat, attributes=dials, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

`vllm serve` takes the same folder; there the dials travel with each request, as `"chat_template_kwargs": {{"attributes": {{...}}}}`.
"""
PREDICTOR = """\
One number per attribute for the last answer of a conversation, in the attribute's own units; `id2label` in `config.json` has their order.

```python
from transformers import AutoTokenizer, pipeline

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{{"role": "user", "content": "Tell me about owls."}}, {{"role": "assistant", "content": "Owls hunt at night."}}]
text = tokenizer.apply_chat_template(chat, tokenize=False)
scorer = pipeline("text-classification", model=folder, tokenizer=tokenizer)
# The template has written all special tokens already, and a regression's scores are no probabilities.
scores = scorer([text], top_k=None, function_to_apply="none", add_special_tokens=False)[0]
print({{score["label"]: score["score"] for score in scores}})
```
"""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(
    run: Run, kind: str, settings: LearnerSettings, training: Metrics, model: Storage, steering: Metrics | None = None
) -> None:
    """`kind` is "policy" or "predictor"; `steering` is the report's table, once it is known."""
    (model / "README.md").write_bytes(card(run, kind, settings, training, steering).encode())


def card(
    run: Run,
    kind: str,
    settings: LearnerSettings,
    training: Metrics,
    steering: Metrics | None = None,
    front: Metrics | None = None,
    folder: str = "FOLDER",
) -> str:
    """The card's text. `front` is added to the hub's front matter; `folder` is what the example loads."""
    return "\n".join(_lines(run, kind, settings, training, steering, front or {}, folder))


def front_matter(entries: Metrics) -> str:
    """What the Hugging Face hub reads of a card."""
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---\n"


def _lines(
    run: Run,
    kind: str,
    settings: LearnerSettings,
    training: Metrics,
    steering: Metrics | None,
    front: Metrics,
    folder: str,
) -> Iterator[str]:
    schema, preset = run.schema, run.preset
    start = preset.base.model if kind == "policy" else preset.predictor.backbone or preset.base.model
    entries = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if kind == "policy" else "text-classification",
        "tags": ["steerlm"],
    }
    # The hub knows models by its own names; a folder or URI would make the whole front matter invalid.
    entries |= {"base_model": start} if start and HUB_NAME.fullmatch(start) and not os.path.isdir(start) else {}
    yield front_matter(entries | front)
    yield f"# {preset.run}: {'a language model with dials' if kind == 'policy' else 'an attribute predictor'}\n"
    yield "Made by the SteerLM method ([arXiv 2310.05344](https://arxiv.org/abs/2310.05344)).\n"
    dials = {a.name: a.default for a in schema.attributes if a.steerable}
    yield POLICY.format(folder=folder, attributes=dials) if kind == "policy" else PREDICTOR.format(folder=folder)
    yield "## Attributes\n\n| name | range | default | better | meaning |\n|---|---|---|---|---|"
    yield from (
        f"| {a.name} | {a.low} to {a.high} | {a.default} | {a.better} | {a.meaning} |" for a in schema.attributes
    )
    yield "\n## Data\n\n| source | format | rows |\n|---|---|---|"
    counts = ((run.manifest("rows") or {}).get("metrics") or {}).get("counts", {})
    for source in preset.rows.sources:
        yield f"| {source.name} | {source.format} | {counts.get(source.name, {}).get('rows', 'unknown')} |"
    yield f"\n## Training\n\nFrom {start or 'a model made and pre-trained here'}, prompt format `{preset.template}`.\n\n| setting | value |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in settings.model_dump(mode="json").items())
    yield "\n| figure | value |\n|---|---|"
    metrics = ("examples", "epochs", "steps", "tokens", "saved_step", "validation_loss")
    yield from (f"| {name} | {training[name]} |" for name in metrics if training.get(name) is not None)
    yield f"| last training loss | {training['losses'][-1]['loss']} |"
    if steering:
        yield f"\n## Do the dials turn?\n\nMeasured {steering['measured_by']}.\n\n| attribute | asked -> measured | Spearman |\n|---|---|---|"
        for name, row in steering["steering"].items():
            curve = ", ".join(
                f"{asked:g} -> {got:.2f}" for asked, got in zip(row["requested"], row["measured"], strict=True)
            )
            yield f"| {name} | {curve} | {'unknown' if row['spearman'] is None else format(row['spearman'], '.2f')} |"
    yield ""
