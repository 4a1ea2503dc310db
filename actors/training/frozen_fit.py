"""Heads fitted in closed form to a frozen backbone, by the workers of one training: no step, no optimizer.

The workers compute the features of their packs and keep them in a `FeatureStore`; the first one fits the heads to all
of them, and everybody gets the result. Knows no loop (`actors.training.trainer`) and no linear algebra
(`actors.modeling.ridge_choice`).
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ray.train
import torch

from actors.modeling.regressor import PredictorLoss, PredictorTask
from actors.modeling.ridge_choice import FittedHeads, Labelled, fit_heads, group_folds
from actors.training.collectives import AgreedError, agree, barrier, from_first, summed
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.forwards import forwards
from actors.training.metrics import MetricsLogger, peak_memory_bytes
from actors.training.precision import with_precision
from actors.training.save_model import require_savable, save_trained_model
from actors.training.shares import Shares
from actors.training.start_engine import require_packs_isolated
from actors.training.train_state import TrainState
from actors.training.trainer import Assignment
from data.errors import UserError
from data.examples import Examples
from data.feature_store import FeatureStore
from data.packing import best_fit
from data.run_layout import TRAINING, write_record
from data.stage_metrics import CheckpointMetrics, TrainingMetrics
from data.storage import Storage

MAX_NUMBERS = 200_000_000
"""Features that the first worker holds at most, in float32; the fit needs some six times their memory."""
ANSWERS_PER_FILE = 1024
LOG_EVERY_S = 30.0


class FrozenFit:
    """One worker's part."""

    def __init__(self, assignment: Assignment):
        context, self.loader = ray.train.get_context(), assignment.loader
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        frozen = {"lora": None, "activation_checkpointing": False}
        settings = assignment.settings.model_copy(update=frozen)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
        task = assignment.task
        assert isinstance(task, PredictorTask), "only a predictor has heads"
        assert task.layer_heads, "without them there is nothing to fit"
        self.task = replace(task, packing=settings.packing == "on")
        self.output, state = Storage(assignment.output_uri), TrainState()
        self.settings, line = with_precision(settings, state, assignment.what)
        self.engine = TrainingEngine(self.task, self.settings, self.rank, self.world)
        self.module: PredictorLoss = self.engine.module.to(self.engine.device).eval()
        self.shares = Shares(self.task, self.settings, self.loader, self.engine.device, self.rank, self.world)
        require_savable(self.task, self.engine, self.output)
        where, how = (assignment.what, self.output, assignment.tracking), (self.engine.device, self.settings.precision)
        self.logger = MetricsLogger(*where, self.world, *how, enabled=self.rank == 0)
        self.logger.log(line)
        assert self.module.reader is not None
        self.heads = self.module.reader.heads
        width = self.module.model.score.in_features - 1
        blocks = "-".join(f"{b.layer}{b.reading}" for b in self.heads.blocks)
        kind = hashlib.sha256(f"{self.settings.precision}/{blocks}".encode()).hexdigest()[:12]
        self.store = FeatureStore(Storage(assignment.features_uri or (self.output / "features").uri), kind, width)
        self.fence = assignment.fence

    def run(self) -> TrainingMetrics:
        """Compute what features are missing, fit, save the model; returns the metrics."""
        started, self.cpu_s = time.perf_counter(), -time.process_time()
        self.share = self._share()
        with (
            torch.no_grad(),
            torch.autocast(self.engine.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"),
        ):
            require_packs_isolated(self.task, self.engine, self.module)
            own = self._compute(started)
        tokens, budget = summed(*own)  # all files are there once everybody has come here
        fitted, examples, weight = self._fitted()
        self.module.set_heads(fitted.heads, fitted.weights_AF)
        if self.fence:
            self.fence.require()
        save_trained_model(self.task, self.engine, None, self.output / "model", 0, 0.0, self.fence)
        metrics = self._metrics(fitted, (examples, weight), (tokens, budget), time.perf_counter() - started)
        if self.rank == 0:
            write_record(self.output / TRAINING, metrics)
        self.logger.close()
        barrier()  # no worker ends before the model is saved
        return metrics

    def _metrics(
        self, fitted: FittedHeads, learned: tuple[int, float], filled: tuple[float, float], seconds: float
    ) -> TrainingMetrics:
        """Those of a training without a step; every worker takes part."""
        [cpu_s] = summed(self.cpu_s + time.process_time())
        tokens, budget = filled
        return TrainingMetrics(
            zero_stage=self.settings.zero_stage,
            precision=self.settings.precision,
            num_workers=self.world,
            steps=0,
            epochs=0,
            examples=learned[0],
            tokens=int(tokens),
            packs_filled=round(tokens / budget, 4) if budget else 0.0,
            target_weight=round(learned[1], 3),
            held_bytes=None,
            tokens_per_s=round(tokens / seconds, 1),
            train_seconds=round(seconds, 1),
            peak_memory_bytes=peak_memory_bytes(self.engine.device),
            checkpoints=CheckpointMetrics(written=0, failed=0, blocked_s=0, upload_s=0),
            saved_step=0,
            validation_loss=None,
            validations=(),
            cpu_seconds=round(cpu_s, 2),
            heads=dict(zip(self.task.schema.names, fitted.fits, strict=True)),
        )

    def _share(self) -> float:
        """The share of the rated answers that the heads are fitted to; logs their number."""
        settings = self.task.layer_heads
        assert settings is not None
        total = sum(self._answers(examples, i) for examples in self._windows() for i in self._rated(examples))
        if not total:
            raise AgreedError(
                f"no rated answer to fit heads to in {self.loader.corpus.uri}: all are held out, rejected or have "
                "weight 0; lower validation_share, or check max_tokens and predictor.source_weights"
            )
        most = min(settings.max_answers, max(1, MAX_NUMBERS // self.store.width))
        drawn = "" if total <= most else f"; about {most:,} of them are drawn with seed {self.settings.seed}"
        tried = "tried" if settings.chooses else "read"
        self.logger.log(
            f"frozen backbone of {self.heads.depth} layers, {tried}: {', '.join(map(str, self.heads.blocks))}; "
            f"{total:,} rated answers{drawn}"
        )
        return min(1.0, most / total)

    def _windows(self) -> Iterator[Examples]:
        return (self.loader.corpus.read(shards) for shards in self.loader.windows(0))

    def _rated(self, examples: Examples) -> list[int]:
        """The examples to learn from, before a sample is drawn."""
        weights, trains = self.loader.weights, self.loader.split.trains
        return [
            i
            for i in range(len(examples))
            if trains(examples.groups[i]) and weights.get(examples.sources[i], 1.0) > 0 and self._answers(examples, i)
        ]

    def _chosen(self, examples: Examples) -> list[int]:
        """Those of them in the sample, the same in every fold and on every worker."""
        rated = self._rated(examples)
        return [i for i in rated if self.share >= 1 or _place(self.settings.seed, examples.ids[i]) < self.share]

    def _answers(self, examples: Examples, i: int) -> int:
        """How many answers of an example have a label."""
        return int((self.task.label_weights(examples[i]) > 0).any(1).sum())

    def _compute(self, started: float) -> tuple[int, int]:
        """Compute and keep this worker's share of the missing features; returns tokens, filled and possible."""
        there = from_first(self.store.ids() if self.rank == 0 else None)
        tokens = budget = 0
        ids: list[str] = []
        features: list[np.ndarray] = []
        logged = started
        for examples in self._windows():
            missing = [i for i in self._chosen(examples) if examples.ids[i] not in there]
            lengths = [int(examples.lengths[i]) for i in missing]
            packs = [[missing[n] for n in pack] for pack in best_fit(lengths, self.settings.pack_tokens)]
            packs = forwards(packs, self.task.packing)
            for number in self.shares.dealt(examples, packs)[self.rank] if packs else ():
                ids += [examples.ids[i] for i in packs[number]]
                features += self._features(examples, packs[number])
                tokens += sum(int(examples.lengths[i]) for i in packs[number])
                budget += self.settings.pack_tokens
                if sum(map(len, features)) >= ANSWERS_PER_FILE:
                    self.store.add(ids, features)
                    ids, features = [], []
                if time.perf_counter() - logged > LOG_EVERY_S:
                    logged = time.perf_counter()
                    self.logger.log(
                        f"features: {tokens:,} tokens, {tokens / (logged - started):,.0f} tokens/s a worker"
                    )
        if ids:
            self.store.add(ids, features)
        return tokens, budget

    def _features(self, examples: Examples, pack: list[int]) -> list[np.ndarray]:
        """The features of each example's answers, without the constant, [S, F]."""
        inputs: dict[str, Any] = self.shares.inputs(examples, pack)
        found_SF = self.module.read(inputs["pack"], inputs["reads_S"], inputs["starts_S"])[:, :-1].float().cpu().numpy()
        return np.split(found_SF, np.cumsum([len(examples[i].turn_ends_S) for i in pack])[:-1])

    def _fitted(self) -> tuple[FittedHeads, int, float]:
        """The heads, the number of examples that they are fitted to, and the weight of their labels."""
        found, error = None, None
        if self.rank == 0:
            try:
                found = self._fit()
            except UserError as wrong:
                error = wrong
        barrier()  # waits for the fit without a time limit
        agree(error)
        result: tuple[FittedHeads, int, float] = from_first(found)
        return result

    def _fit(self) -> tuple[FittedHeads, int, float]:
        groups: dict[str, str] = {}
        labels: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for examples in self._windows():
            for i in self._chosen(examples):
                example, weight = examples[i], self.loader.weights.get(examples.sources[i], 1.0)
                weights_SA = self.task.label_weights(example) * np.float32(weight)
                values_SA = np.where(weights_SA > 0, example.values_SA, 0).astype(np.float32)
                groups[examples.ids[i]], labels[examples.ids[i]] = examples.groups[i], (values_SA, weights_SA)
        by_id = dict(self.store.read(labels.keys()))
        order = sorted(by_id)  # not by file: their order depends on the number of workers
        assert len(order) == len(labels), "the features of every example are there"
        values_NA, weights_NA = (np.concatenate([labels[id][part] for id in order]) for part in (0, 1))
        folds_N = group_folds([groups[id] for id in order for _ in range(len(by_id[id]))], self.settings.seed)
        features_NF = torch.from_numpy(np.concatenate([by_id.pop(id) for id in order]))
        labelled = Labelled(features_NF, *map(torch.from_numpy, (values_NA, weights_NA, folds_N)))
        assert self.task.layer_heads is not None
        fitted = fit_heads(labelled, self.heads, self.task.layer_heads.chooses)
        for name, fit in zip(self.task.schema.names, fitted.fits, strict=True):
            self.logger.log(
                f"{name}: heads read {', '.join(fit.blocks) or 'nothing'}, penalty {fit.penalty:g}; they explain "
                f"{fit.explained:.1%} of the variance of {fit.answers:,} labels, on groups not fitted to"
            )
        return fitted, len(order), float(weights_NA.sum(dtype=np.float64))


def _place(seed: int, id: str) -> float:
    """Where an example stands in a random order, 0 to 1."""
    return int.from_bytes(hashlib.sha256(f"heads/{seed}/{id}".encode()).digest()[:8], "big") / 2**64
