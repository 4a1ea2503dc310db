"""Trainings whose packs are full, run as every training is, and the peak of their worker's resident memory."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.modeling.model_shape import ModelShape, read_config, shape_of
from actors.modeling.policy import PolicyTask
from actors.modeling.regressor import PredictorTask
from actors.modeling.settings import TemplateKind
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.examples import EXAMPLE_SCHEMA, Origin, example_row
from data.loader import Corpus
from data.storage import Storage
from data.tokens import Tokens
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")
STEPS = 2
"""The optimizer's moments exist from the end of the first."""
SAMPLED_EVERY_S = 0.05
WORKER = "ray::RayTrainWorker"


def model_folder(tokenizer_of: str, folder: Path, model_type: str, **entries: Any) -> str:
    """A random model of this type in `folder`, with the tokenizer of another."""
    folder.mkdir()
    for file in Path(tokenizer_of).iterdir():
        if file.name.startswith(("tokenizer", "special", "chat_template")):
            (folder / file.name).write_bytes(file.read_bytes())
    config = AutoConfig.for_model(model_type, pad_token_id=0, bos_token_id=None, eos_token_id=1, **entries)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def full_packs(folder: Path, pack_tokens: int, num_packs: int, segments: int = 4) -> Corpus:
    """Examples of `pack_tokens` / `segments` tokens, all trained but the first: `num_packs` packs without a gap."""
    tokens, target = pack_tokens // segments, Storage(str(folder / "examples"))
    rng = np.random.default_rng(0)
    trained_T = np.arange(tokens) > 0
    values_SA = np.ones((1, len(SCHEMA.names)), np.float32)
    rows = [
        example_row(
            Origin(f"row-{i}", f"group-{i}", "full"),
            Tokens(rng.integers(5, 500, tokens).astype(np.int32), trained_T, np.array([tokens - 1], np.int32), 0),
            values_SA,
        )
        for i in range(num_packs * segments)
    ]
    write_table(pa.Table.from_pylist(rows, EXAMPLE_SCHEMA), target)
    return Corpus.of(target)


def shape_at(base: str, predictor: bool) -> ModelShape:
    return shape_of(read_config(base), predictor)


def measured_peak(
    base: str, learner: LearnerSettings, folder: Path, predictor: bool, template: TemplateKind = "steerlm"
) -> int:
    """Bytes of resident memory, at most, of the one worker of some steps, from its start to its saved model."""
    task = (PredictorTask if predictor else PolicyTask)(base, SCHEMA, template)
    corpus = full_packs(folder, learner.pack_tokens, STEPS * learner.packs_per_step)
    with _Peak() as peak:
        metrics = fit(folder.name, task, learner, corpus, Storage(str(folder / "out")))
    assert metrics.steps == STEPS, json.dumps(metrics.model_dump(mode="json"))
    assert peak.bytes, "no worker was seen"
    return peak.bytes


class _Peak:
    """The kernel's own high-water mark of the train workers that this process's Ray starts meanwhile."""

    bytes = 0

    def __enter__(self) -> "_Peak":
        self._over = threading.Event()
        self._before = set(self._workers())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            for pid in set(self._workers()) - self._before:
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                marks = [line for line in status.splitlines() if line.startswith("VmHWM:")]
                self.bytes = max([self.bytes, *(int(line.split()[1]) * 1024 for line in marks)])
            time.sleep(SAMPLED_EVERY_S)

    def _workers(self) -> list[int]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found
