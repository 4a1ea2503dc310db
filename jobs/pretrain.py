"""Stage `base`: the model that predictor and policy start from, named in the preset or made and pre-trained here.

python -m jobs.pretrain PRESET.yaml [key.path=value ...]
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa

from actors.modeling.gguf_file import gguf_file, is_gguf, license_of
from actors.training.settings import LearnerSettings
from data.conversation import Conversation, from_table
from data.examples import Split
from data.source_checksums import checksums
from data.sources import read_texts
from data.stage_metrics import BaseMetrics, TrainingMetrics
from data.storage import Storage
from data.template import surroundings
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.tokenize import Tokenizing
from jobs.reporting.figures_training import draw_losses
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, fingerprint_of, log
from jobs.runner.start_models import base_model


def texts(run: Run) -> Iterator[str]:
    """The texts that the language model learns from, and the tokenizer: the preset's, or all messages of the rows."""
    base = run.preset.base
    if base.texts:
        yield from read_texts(base.texts, base.text_limit)
        return
    for row in _rows(run):
        yield from (m.content for m in row.messages)


def _rows(run: Run) -> Iterator[Conversation]:
    for table in (run.folder("rows") / "rows").tables():
        yield from from_table(table)


def prompt_words(run: Run) -> Iterator[str]:
    """What the prompt adds to the texts: a tokenizer that never saw it cuts a label line into three times the tokens.

    Long label lines cost time in every training, and a small model learns late which of their many tokens to read.
    """
    for row in _rows(run):
        yield from surroundings(run.schema, row.messages, row.human)


def work(run: Run, folder: Storage) -> BaseMetrics:
    from actors.modeling.tiny_llama import make_small_model  # with torch

    base = run.preset.base
    if base.model:
        return _named(base.model, folder)
    found = list(texts(run))
    with tempfile.TemporaryDirectory() as local:
        sizes = make_small_model(base.small, chain(found, prompt_words(run)), run.preset.seed, local)
        # Training replaces `model`; its start stays beside it.
        start = folder / ("start" if base.pretrain else "model")
        start.upload(local)
    num_parameters, vocab_size = sizes["num_parameters"], sizes["vocab_size"]
    log(f"base: a Llama of {num_parameters:,} parameters, vocabulary {vocab_size}, from {len(found):,} texts")
    metrics = BaseMetrics(counts={"texts": len(found)}, num_parameters=num_parameters, vocab_size=vocab_size)
    if not base.pretrain:
        return metrics
    training = _pretrained(run, base.pretrain, found, start.uri, folder)
    return metrics.model_copy(update={"training": training.without_curve()})


def _named(model: str, folder: Storage) -> BaseMetrics:
    """The preset's own model; what is one GGUF file becomes a folder that every later stage can read."""
    from actors.modeling.gguf_model import convert  # with torch

    if not is_gguf(model):
        log(f"base: {model}")
        return BaseMetrics(model=model, counts={})
    with tempfile.TemporaryDirectory() as local:
        num_parameters = convert(model, local)
        (folder / "model").upload(local)
    licensed = f", license {license}" if (license := license_of(model)) else ""
    log(f"base: {model}{licensed}: {num_parameters:,} parameters, converted to safetensors")
    return BaseMetrics(model=model, counts={}, num_parameters=num_parameters)


def _pretrained(
    run: Run, learner: LearnerSettings, found: Sequence[str], start: str, folder: Storage
) -> TrainingMetrics:
    """Train the model at `start` on the texts; without texts in the preset, on whole conversations in prompt format.

    After conversations, a model only has to learn the meaning of the labels.
    """
    from actors.modeling.policy import PolicyTask  # all with torch
    from actors.training.examples import ConversationExamples, TextExamples
    from jobs.pipelines.fit import example_spec, fit

    what, task = "base: pre-training", PolicyTask(start, run.schema, run.preset.template)
    rows, from_texts = run.folder("rows") / "rows", bool(run.preset.base.texts)
    if from_texts:
        rows = folder / "texts"
        write_table(pa.table({"id": [f"{i:08d}" for i in range(len(found))], "text": found}), rows)
    maker, arguments = TextExamples if from_texts else ConversationExamples, {"spec": example_spec(run, learner, start)}
    tokenizing = Tokenizing("base", [rows], maker, arguments, folder / "examples", fingerprint_of(folder))
    with tokenizing.meanwhile(learner) as examples:
        training = fit(what, task, learner, examples, folder, Split(buckets=50), tracking=run.preset.tracking)
    draw_losses({what: training}, folder / "loss.png")
    return training


def _inputs(run: Run) -> dict[str, str]:
    texts = run.preset.base.texts
    return checksums(texts) if texts else {}


def _models(run: Run) -> dict[str, str]:
    """Also a GGUF file, which has no setting's name but its own: runs were fingerprinted so before."""
    model = run.preset.base.model
    if model and is_gguf(model):
        file = gguf_file(model)
        return {file: file}
    return base_model(run)


def _settings(preset: Preset) -> object:
    base = preset.base.model_copy(update={"num_parameters": None})
    return {"base": base, "template": preset.template, "seed": preset.seed}


STAGE = Stage("base", ("rows",), _settings, work, _inputs, resumes=True, models=_models)

if __name__ == "__main__":
    main(__doc__, [STAGE])
