"""The checks of `jobs.gpu_smoke`, in order, and what they found. Starts nothing by itself: Ray is connected."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.generation.settings import EngineKind
from actors.modeling.random_llama import make_random_policy
from actors.modeling.self_check import Heads, check_all_fused, packed_difference
from actors.training.settings import LearnerSettings
from jobs.bench.report import print_table
from jobs.gpu_checks.checks import Check, CheckFailed, Skipped
from jobs.gpu_checks.sizes import LlamaSize, size_of
from jobs.gpu_checks.speed import (
    SCHEMA,
    SamplingWork,
    Speed,
    annotation,
    lab_rows,
    peaks,
    require_engine,
    sampling,
    used_device,
)
from jobs.gpu_checks.stages import run_stages
from jobs.gpu_checks.target import Target
from jobs.gpu_checks.training import Trained, Trainings, memory_lines, zero_check

FORWARD_ERROR, BACKWARD_ERROR = 0.03, 0.05
"""Largest errors of a fused kernel in bf16, as shares of the reference's largest value: some ten roundings of 2^-8."""
PACKED_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.1}
GREEDY_GAP = {"fp32": 1e-2, "bf16": 0.2}
"""In standard deviations of the logits; a wrong cache is off by whole ones."""
OVER_PLAN = 1.15
"""A GPU's peak memory may be so many times what the plan says."""
ZERO_STAGES = (0, 1, 2, 3)
HEADS: tuple[Heads, ...] = ((32, 8, 128, None), (12, 12, 64, 100))
"""Further shapes of attention: that of an 8 B Llama, and one with a sliding window."""


@dataclass(frozen=True)
class Amounts:
    """How much work each check does."""

    size: LlamaSize
    learner: LearnerSettings
    steps: int
    annotate_rows: int
    annotate_pack_tokens: int
    sampling: SamplingWork
    stages_limit_s: float
    limit_s: float
    """Of every other check."""


def amounts(target: Target) -> Amounts:
    """On a GPU for ten minutes at most; on a CPU for four, but with limits for a machine that is busy."""
    common: dict[str, Any] = {
        "num_workers": target.num_workers,
        "use_gpu": target.on_gpu,
        "precision": target.precision,
        "warmup": 0.0,
        "checkpoint_every_s": 0,
        "export": "bfloat16",
    }
    if target.on_gpu:
        packs = 4 * target.num_workers
        learner = LearnerSettings(pack_tokens=8192, max_tokens=2048, packs_per_step=packs, learning_rate=3e-4, **common)
        return Amounts(size_of("100M"), learner, 12, 8000, 32768, SamplingWork(64, 128, 64), 400, 240)
    learner = LearnerSettings(pack_tokens=512, max_tokens=512, packs_per_step=4, learning_rate=3e-3, **common)
    return Amounts(size_of("1M"), learner, 8, 200, 1024, SamplingWork(8, 24, 8), 900, 900)


@dataclass
class Smoke:
    """All checks on one machine."""

    target: Target
    folder: Path
    amounts: Amounts
    trained: dict[int, Trained] = field(default_factory=dict)
    """By ZeRO stage."""
    speeds: dict[str, Speed] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def start(self) -> str:
        """The policy with random weights that all checks but the stages start from."""
        return str(self.folder / "random")

    def checks(self) -> list[Check]:
        trainings = Trainings(self.start, self.folder / "training", self.amounts.learner)
        checks: list[tuple[str, Callable[[], str]]] = [
            ("matrix products", self.matrix_products),
            ("random model", lambda: self.random_model(trainings)),
            ("devices", self.devices),
            ("fused attention", self.fused_attention),
            ("packed = one by one", self.packed),
            *((f"ZeRO {stage}", zero_check(trainings, self.trained, stage)) for stage in ZERO_STAGES),
            ("checkpoint and resume", lambda: self.resume(trainings)),
            ("memory against plan", self.memory),
            ("annotation", self.annotation),
            ("sampling, transformers", lambda: self.sampling("transformers")),
            ("sampling, vLLM", lambda: self.sampling("vllm")),
        ]
        stages = Check("stages of a run", self.stages, self.amounts.stages_limit_s)
        return [stages, *(Check(name, run, self.amounts.limit_s) for name, run in checks)]

    def stages(self) -> str:
        folder = self.folder / "stages"
        folder.mkdir()
        return run_stages(self.target, self.amounts.size, folder)

    def matrix_products(self) -> str:
        self.peaks = self.target.call(peaks, ("fp32", "bf16"))
        return ", ".join(f"{name} {value / 1e12:.3g} TFLOP/s" for name, value in self.peaks.items())

    def random_model(self, trainings: Trainings) -> str:
        texts = [message.content for row in lab_rows(500) for message in row.messages]
        size = self.amounts.size
        arguments = (size.shape, size.tied, texts, SCHEMA, "float32", self.target.torch_device, self.start)
        num_parameters = self.target.call(make_random_policy, *arguments)
        tokens = trainings.write_examples(self.amounts.steps)
        return f"{num_parameters:,} parameters; {tokens:,} tokens to train on"

    def devices(self) -> str:
        """A process computes on what it reserved, whatever torch sees."""
        without = Target("cpu", 0).call(used_device, self.start)
        if without != "cpu":
            raise CheckFailed(f"a process that reserved no GPU computes on {without}, beside those that reserved it")
        found = self.target.call(used_device, self.start)
        if found != self.target.torch_device:
            raise CheckFailed(f"a process that reserved a GPU computes on {found}")
        return f"{without} without a GPU reserved, {found} as reserved"

    def fused_attention(self) -> str:
        if not self.target.on_gpu:
            raise Skipped("a CPU has no fused kernel: one SDPA call for each segment")
        shape = self.amounts.size.shape
        own: Heads = (shape.num_heads, shape.num_kv_heads, shape.hidden_size // shape.num_heads, None)
        told, wrong, shapes = [], [], (own, *HEADS)
        checked = self.target.call(check_all_fused, "cuda", "bfloat16", shapes)
        for heads, found in zip(shapes, checked, strict=True):
            name = "{}/{} heads of {}, window {}".format(*heads)
            if found is None:
                raise CheckFailed(f"no fused kernel for {name}: attention makes one slow call for each segment")
            told.append(f"{name}: {found.name}, forward {found.forward:.1e}, backward {found.backward:.1e}")
            if not (found.forward <= FORWARD_ERROR and found.backward <= BACKWARD_ERROR):
                wrong.append(told[-1])
        if wrong:
            raise CheckFailed(f"errors above {FORWARD_ERROR}, {BACKWARD_ERROR} of the largest value: {wrong[0]}")
        return "; ".join(told)

    def packed(self) -> str:
        found = self.target.call(packed_difference, self.start, self.target.torch_device, self.target.dtype)
        limit = PACKED_DIFFERENCE[self.target.precision]
        if not found <= limit:
            raise CheckFailed(f"segments of a pack see each other: logits are off by {found:.1e} of their spread")
        return f"logits within {found:.1e} of their spread"

    def resume(self, trainings: Trainings) -> str:
        stage = trainings.learner.zero_stage
        if stage not in self.trained:
            raise CheckFailed(f"ZeRO {stage} has failed: nothing to compare with")
        return trainings.resumed(self.trained[stage])

    def memory(self) -> str:
        if not self.trained:
            raise CheckFailed("no training has ended")
        print_table(
            ("peak memory of a worker", "plan MiB", "measured MiB", "measured / plan"), memory_lines(self.trained)
        )
        worst = self.over_plan
        if not self.target.on_gpu:
            # Libraries' own buffers are most of the resident memory of a process with a model of this size.
            return f"measured up to {worst:.2f} of the plan; no verdict: the model is too small for a CPU's memory"
        if worst > OVER_PLAN:
            raise CheckFailed(f"a training takes {worst:.2f} times what the plan says, {OVER_PLAN} is allowed")
        return f"measured up to {worst:.2f} of the plan"

    @property
    def over_plan(self) -> float:
        """Measured over planned peak memory, of the ZeRO stage where it is largest."""
        return max((t.peak_bytes / t.planned_bytes for t in self.trained.values()), default=float("nan"))

    def annotation(self) -> str:
        amounts = self.amounts
        arguments = (amounts.annotate_pack_tokens, amounts.learner.max_tokens)
        rows = lab_rows(amounts.annotate_rows)
        found = self.target.call(annotation, self.start, amounts.size, rows, self.target, *arguments)
        self.speeds["annotation"] = found
        return str(found)

    def sampling(self, kind: EngineKind) -> str:
        require_engine(kind)
        amounts = self.amounts
        rows = lab_rows(amounts.sampling.num_answers)
        found = self.target.call(sampling, kind, self.start, amounts.size, rows, self.target, amounts.sampling)
        limit = GREEDY_GAP[self.target.precision]
        if found.greedy_gap is not None and not found.greedy_gap <= limit:
            raise CheckFailed(
                f"greedy answers are not the likeliest: {found.greedy_gap:.2g} standard deviations of the logits below "
                f"a plain forward's, {limit} is rounding"
            )
        self.speeds[f"sampling_{kind}"] = found
        return f"{found}; greedy within {found.greedy_gap:.1g} standard deviations"
