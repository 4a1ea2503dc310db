"""Stage `base`: the model that predictor and policy start from: a named one, or a small one made and pre-trained here.

python -m jobs.pretrain PRESET.yaml [key.path=value ...]
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from actors.modeling.policy import PolicyTask
from actors.modeling.tiny_llama import make_small_model
from actors.training.examples import ConversationExamples, TextExamples
from data.conversation import from_table
from data.examples import Split
from data.sources import files_of, read_texts
from data.storage import Storage
from jobs.pipelines.fit import example_spec, fit
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.tokenize import Tokenizing
from jobs.reporting.figures_training import draw_losses
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, Stage, fingerprint_of, log


def texts(run: Run) -> Iterator[str]:
    """What tokenizer and language model learn from: the preset's texts, or everything the rows say."""
    base = run.preset.base
    if base.texts:
        yield from read_texts(base.texts, base.text_limit)
        return
    for table in (run.folder("rows") / "rows").tables():
        for row in from_table(table):
            yield from (m.content for m in row.messages)


def work(run: Run, folder: Storage) -> Metrics:
    base = run.preset.base
    if base.model:
        log(f"base: {base.model}")
        return {"model": base.model, "counts": {}}
    found = list(texts(run))
    with tempfile.TemporaryDirectory() as local:
        metrics: Metrics = {"counts": {"texts": len(found)}} | make_small_model(
            base.small, found, run.preset.seed, local
        )
        # Training replaces `model`; what it started from stays beside it.
        start = folder / ("start" if base.pretrain else "model")
        start.upload(local)
    log(
        f"base: a Llama of {metrics['num_parameters']:,} parameters, vocabulary {metrics['vocab_size']}, from {len(found):,} texts"
    )
    if base.pretrain:
        spec = replace(example_spec(run, base.pretrain), base=start.uri)
        # Whole conversations are in the prompt format: what comes next then only has to learn what the labels mean.
        rows, maker = (
            (folder / "texts", TextExamples) if base.texts else (run.folder("rows") / "rows", ConversationExamples)
        )
        if base.texts:
            write_table(pa.table({"id": [f"{i:08d}" for i in range(len(found))], "text": found}), rows)
        tokenizing = Tokenizing("base", [rows], maker, {"spec": spec}, folder / "examples", fingerprint_of(folder))
        task = PolicyTask(start.uri, run.schema, run.preset.template)
        with tokenizing.meanwhile(base.pretrain) as examples:
            training = fit(
                "base: pre-training",
                task,
                base.pretrain,
                examples,
                folder,
                Split(buckets=50),
                tracking=run.preset.tracking,
            )
        draw_losses({"base: pre-training": training}, folder / "loss.png")
        metrics |= training
    return metrics


def _inputs(run: Run) -> dict[str, str]:
    uri = run.preset.base.texts
    return {file: Storage(file).checksum() for file in files_of(uri)} if uri else {}


def _settings(preset: Preset) -> object:
    return {
        "base": preset.base.model_copy(update={"num_parameters": None}),
        "template": preset.template,
        "seed": preset.seed,
    }


STAGE = Stage("base", ("rows",), _settings, work, _inputs, resumes=True)

if __name__ == "__main__":
    main(__doc__, [STAGE])
