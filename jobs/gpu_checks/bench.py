"""One size of `jobs.gpu_bench`: training packs, annotation and sampling of a random Llama. Ray is connected."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from actors.generation.settings import EngineKind
from actors.kernels.machine import gpu_memory_bytes
from actors.modeling.random_llama import make_random_policy
from actors.modeling.settings import LoraSettings
from actors.training.settings import LearnerSettings
from jobs.gpu_checks.checks import Check, CheckFailed
from jobs.gpu_checks.sizes import LlamaSize
from jobs.gpu_checks.speed import SCHEMA, SamplingWork, Speed, annotation, lab_rows, require_engine, sampling
from jobs.gpu_checks.target import Target
from jobs.gpu_checks.training import Trained, Trainings, planned_bytes

FREE = 0.92
"""Share of a GPU's memory that a training may take by its plan."""
STEPS = 10
LIMIT_S = 1500.0
"""Of a check: 8 B in bf16 are 16 GB to write and to read."""


@dataclass
class SizeBench:
    """All measurements of one size."""

    target: Target
    size: LlamaSize
    folder: Path
    trained: Trained | None = None
    how: str = ""
    """What the training did to fit into memory."""
    speeds: dict[str, Speed] = field(default_factory=dict)

    @property
    def start(self) -> str:
        """The policy with random weights."""
        return str(self.folder / "random")

    def checks(self) -> list[Check]:
        parts: dict[str, Callable[[], str]] = {
            "random model": self.random_model,
            "training": self.training,
            "annotation": self.annotation,
            "sampling, transformers": partial(self.sampling, "transformers"),
            "sampling, vLLM": partial(self.sampling, "vllm"),
        }
        return [Check(f"{self.size.name} {name}", run, LIMIT_S) for name, run in parts.items()]

    def random_model(self) -> str:
        self.folder.mkdir()
        texts = [message.content for row in lab_rows(500) for message in row.messages]
        dtype = "bfloat16" if self.target.on_gpu else "float32"
        arguments = (self.size.shape, self.size.tied, texts, SCHEMA, dtype, self.target.torch_device, self.start)
        return f"{self.target.call(make_random_policy, *arguments):,} parameters"

    def training(self) -> str:
        learner, self.how = self._fitting(gpu_memory_bytes() if self.target.on_gpu else None)
        trainings = Trainings(self.start, self.folder / "training", learner)
        trainings.write_examples(STEPS)
        self.trained = trainings.train("bench")
        peak = f"{self.trained.peak_bytes / 2**30:.1f} GiB at most, {self.trained.planned_bytes / 2**30:.1f} planned"
        speed = f"{self.trained.tokens_per_s:,.0f} tokens/s, {self.trained.share_of_peak:.1%} of peak"
        return f"{self.how}: {speed}; {peak}"

    def _fitting(self, memory_bytes: int | None) -> tuple[LearnerSettings, str]:
        """The first way to train that fits by its plan; raises CheckFailed with the numbers if none does."""
        needed = []
        for how, changes in ways(self.target).items():
            learner = learner_for(self.target).model_copy(update=changes)
            planned = planned_bytes(self.start, learner)
            if memory_bytes is None or planned <= FREE * memory_bytes:
                return learner, how
            needed.append(f"{how} {planned / 2**30:.0f} GiB")
        raise CheckFailed(f"a GPU has {(memory_bytes or 0) / 2**30:.0f} GiB, and it takes: {', '.join(needed)}")

    def annotation(self) -> str:
        rows, pack_tokens = (8000, 32768) if self.target.on_gpu else (100, 1024)
        arguments = (self.size, lab_rows(rows), self.target, pack_tokens, 512)
        found = self.speeds["annotation"] = self.target.call(annotation, self.start, *arguments)
        return str(found)

    def sampling(self, kind: EngineKind) -> str:
        require_engine(kind)
        work = SamplingWork(256, 256, 64, 0.85, False) if self.target.on_gpu else SamplingWork(8, 16, 8, 0.5, False)
        arguments = (self.start, self.size, lab_rows(work.num_answers), self.target, work)
        found = self.speeds[f"sampling_{kind}"] = self.target.call(sampling, kind, *arguments)
        return str(found)


def learner_for(target: Target) -> LearnerSettings:
    """How every size is trained, before it is made to fit."""
    workers = target.num_workers
    return LearnerSettings(
        num_workers=workers,
        use_gpu=target.on_gpu,
        precision=target.precision,
        pack_tokens=8192 if target.on_gpu else 512,
        max_tokens=512,
        packs_per_step=4 * workers if target.on_gpu else workers,
        learning_rate=1e-4,
        warmup=0,
        checkpoint_every_s=0,
        export="bfloat16",
    )


def ways(target: Target) -> dict[str, dict[str, Any]]:
    """From the fastest to the smallest: the changes to the learner."""
    sharded = {"zero_stage": 3, "activation_checkpointing": True}
    found: dict[str, dict[str, Any]] = {
        "all weights, ZeRO 2": {"zero_stage": 2},
        "all weights, ZeRO 2, activation checkpointing": {"zero_stage": 2, "activation_checkpointing": True},
    }
    if target.num_workers > 1:
        found["all weights, ZeRO 3, activation checkpointing"] = sharded
    lora = {"lora": LoraSettings(), "activation_checkpointing": True}
    return found | {"LoRA, ZeRO 2, activation checkpointing": {"zero_stage": 2} | lora}
