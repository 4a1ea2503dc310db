"""The model card beside a model's weights: what it is, how to steer it, what it was made from and how. Knows no Ray."""

from collections.abc import Iterator

from actors.learner_settings import LearnerSettings
from data.storage import Storage
from jobs.stage import Figures, Run

POLICY = """\
Every request sets its own dials; those it leaves out are the model's to choose.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Tell me about owls."}}], attributes={attributes}, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=128)[0]))
```
"""
PREDICTOR = """\
One number per attribute for the last answer of a conversation, in the attribute's own units; `id2label` in `config.json` has their order.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
```
"""


def write_card(run: Run, kind: str, settings: LearnerSettings, training: Figures, model: Storage, steering: Figures | None = None) -> None:
    """`kind` is "policy" or "predictor"; `steering` is the report's table, once it is known."""
    (model / "README.md").write_bytes("\n".join(_lines(run, kind, settings, training, steering)).encode())


def _lines(run: Run, kind: str, settings: LearnerSettings, training: Figures, steering: Figures | None) -> Iterator[str]:
    schema, base = run.schema, run.preset.base
    yield f"---\nlibrary_name: transformers\npipeline_tag: {'text-generation' if kind == 'policy' else 'text-classification'}\ntags: [steerlm]"
    if base.model:
        yield f"base_model: {base.model}"
    yield f"---\n\n# {run.preset.run}: {'a language model with dials' if kind == 'policy' else 'an attribute predictor'}\n"
    yield "Made by the SteerLM method ([arXiv 2310.05344](https://arxiv.org/abs/2310.05344)).\n"
    yield POLICY.format(attributes={a.name: a.default for a in schema.attributes if a.steerable}) if kind == "policy" else PREDICTOR
    yield "## Attributes\n\n| name | range | default | better | meaning |\n|---|---|---|---|---|"
    yield from (f"| {a.name} | {a.low} to {a.high} | {a.default} | {a.better} | {a.meaning} |" for a in schema.attributes)
    yield "\n## Data\n\n| source | format | rows |\n|---|---|---|"
    counts = ((run.manifest("rows") or {}).get("figures") or {}).get("counts", {})
    for source in run.preset.rows.sources:
        yield f"| {source.name} | {source.format} | {counts.get(source.name, {}).get('rows', 'unknown')} |"
    yield f"\n## Training\n\nFrom {base.model or 'a model made and pre-trained here'}, prompt format `{run.preset.template}`.\n\n| setting | value |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in settings.model_dump(mode="json").items())
    yield "\n| figure | value |\n|---|---|"
    figures = ("examples", "epochs", "steps", "tokens", "saved_step", "validation_loss")
    yield from (f"| {name} | {training[name]} |" for name in figures if training.get(name) is not None)
    yield f"| last training loss | {training['losses'][-1]['loss']} |"
    if steering:
        yield f"\n## Do the dials turn?\n\nMeasured {steering['measured_by']}.\n\n| attribute | asked -> measured | Spearman |\n|---|---|---|"
        for name, row in steering["steering"].items():
            curve = ", ".join(f"{asked:g} -> {got:.2f}" for asked, got in zip(row["requested"], row["measured"], strict=True))
            yield f"| {name} | {curve} | {'unknown' if row['spearman'] is None else format(row['spearman'], '.2f')} |"
    yield ""
