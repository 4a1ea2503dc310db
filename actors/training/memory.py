"""The memory that a training needs on each worker, from its settings and the model's shape alone.

Sources: ZeRO, arXiv 1910.02054, section 3; activations, arXiv 2205.05198, section 4; DeepSpeed 0.19's buffers. Held
against measured peaks in tests/test_memory_peaks.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from actors.kernels.cross_entropy import CHUNK_LOGITS
from actors.modeling.model_memory import CPU_PROCESS, GIB, GPU_PROCESS, device_bytes, forward_bytes
from actors.modeling.model_shape import ModelShape
from actors.training.activations import kept_bytes, logits_bytes
from actors.training.export_plan import BATCH_BYTES, BATCHES
from actors.training.settings import BUCKET_ELEMENTS, LIVE_ELEMENTS, LearnerSettings

F32 = 4
"""Bytes of a weight, a gradient, a moment: all of these are fp32."""
MOMENTS = 2
MERGED = 4
"""Copies of a weight while an adapter is merged into it: the weight, the product, the sum, the cast sum."""
RETAINED = 1.2
"""On a CPU: memory that the C library holds after a pack, relative to what the pack's forward kept. It keeps freed
tensors of up to 32 MiB for later ones, in fragments; measured 1.0 to 1.35."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one worker at the moment when it holds most."""

    moment: str
    """When that is: at the end of the forward pass, in the backward pass, the optimizer step or the export."""
    parts: Mapping[str, float]
    """What the bytes of its device are, by name; together they are the peak."""
    knows_activations: bool
    """False = only the model's size is known, not its layers."""
    pack: Mapping[str, float]
    """Bytes that a pack needs for its backward pass, by name, at whatever moment the peak is."""
    host: float = 0.0
    """Bytes in the CPU's memory of a worker on a GPU: what offload moves there, and copies for checkpoints."""

    @property
    def total(self) -> float:
        """On the device."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _States:
    """Bytes on the device beside activations, by the moment that needs them, and what offload keeps in the CPU's."""

    weights: float
    optimizer: float
    """Moments, and the copy of the weights that ZeRO 1 and 2 step."""
    gradients: float
    bucket: float
    """Gradients on their way to other workers."""
    temporaries: float
    """AdamW's square root and quotient; in stage 3 also a copy of the gradients."""
    live: float
    """Whole weights that ZeRO-3 has gathered."""
    host: float


def training_memory(shape: ModelShape, learner: LearnerSettings, has_logits: bool = True) -> TrainingMemory:
    """Most bytes that one worker holds. `has_logits`: is the loss over the vocabulary?

    Stage 1 shards the optimizer, 2 the gradients too, 3 the weights too.
    """
    if learner.precision == "auto":  # what it will be is measured on the workers: on a GPU bf16, on a CPU maybe not
        learner = learner.model_copy(update={"precision": "bf16" if learner.use_gpu else "fp32"})
    if not learner.epochs:
        return _frozen(shape, learner)
    states, on_cpu = _states(shape, learner), not learner.use_gpu
    checkpoint = _checkpoint(shape, learner)
    lasting = {"process": CPU_PROCESS if on_cpu else GPU_PROCESS, "weights": states.weights}
    lasting |= {"optimizer": states.optimizer, "checkpoint copies": checkpoint if on_cpu else 0.0}
    kept = 0.0
    if shape.layers:
        how = learner.precision, learner.activation_checkpointing, learner.lora
        kept = kept_bytes(shape, learner.pack_tokens, *how) * (RETAINED if on_cpu else 1)
    # CUDA's allocator gives a freed tensor to any other.
    after = {"activations": kept if on_cpu else 0.0}
    sent = {"buckets": states.bucket, "gathered weights": states.live}
    if learner.zero_stage == 3:
        lasting |= sent if on_cpu else {"buckets": states.bucket}
    gradients = {"gradients": states.gradients}
    moments = {
        "at the loss": _at_the_loss(shape, learner, states, kept, has_logits),
        "in the backward pass": gradients | after | sent,
        "in the optimizer step": gradients | after | {"the step's temporaries": states.temporaries},
        "in the export": after | {"exported weights": _export(shape, learner) if on_cpu else 0.0},
    }
    moment, own = max(moments.items(), key=lambda item: sum(item[1].values()))
    parts = {name: size for name, size in (lasting | own).items() if size}
    host = 0.0 if on_cpu else states.host + checkpoint
    pack = {name: moments["at the loss"][name] for name in ("activations", "logits")}
    return TrainingMemory(moment, parts, bool(shape.layers), pack, host)


def _frozen(shape: ModelShape, learner: LearnerSettings) -> TrainingMemory:
    """Of heads that are fitted to a frozen backbone: no gradient, no optimizer. The first worker also holds the
    features of all rated answers, whose number a plan does not know."""
    parts = {"process": GPU_PROCESS if learner.use_gpu else CPU_PROCESS, "weights": F32 * shape.num_parameters}
    if learner.precision == "bf16":
        parts["bf16 copies of weights"] = 2 * (shape.cast - shape.inactive)
    pack = forward_bytes(shape, learner.pack_tokens, 2 if learner.precision == "bf16" else F32) if shape.layers else 0.0
    whole = {name: size for name, size in (parts | {"activations": pack}).items() if size}
    return TrainingMemory("in the forward pass", whole, bool(shape.layers), {"activations": pack, "logits": 0.0})


def _at_the_loss(
    shape: ModelShape, learner: LearnerSettings, states: _States, kept: float, has_logits: bool
) -> dict[str, float]:
    """When the backward pass starts: all that it needs is there, and the gradients of the packs before."""
    copies, chunk = 0.0, max(1, CHUNK_LOGITS // max(1, shape.vocabulary))
    if learner.precision == "bf16" and learner.zero_stage < 3:  # ZeRO-3's own products copy one weight at a time
        copies = 2.0 * (shape.cast - shape.inactive)
    return {
        "activations": kept,
        "logits": logits_bytes(shape, learner.pack_tokens, chunk) if has_logits and shape.layers else 0.0,
        "bf16 copies of weights": copies,
        "gradients": states.gradients if learner.packs_per_step > learner.num_workers else 0.0,
        "gathered weights": states.live,
    }


def _states(shape: ModelShape, learner: LearnerSettings) -> _States:
    stage, workers, on_gpu = learner.zero_stage, learner.num_workers, learner.use_gpu
    trained = trained_parameters(shape, learner)
    share, largest = trained / (workers if stage else 1), min(shape.largest or trained, trained)
    weights = F32 * shape.num_parameters / (workers if stage == 3 else 1)
    copy = F32 * share if stage in (1, 2) else 0.0  # stage 3 steps its share of the weights itself
    moments = F32 * MOMENTS * share
    gradients = F32 * trained / (workers if stage >= 2 else 1)
    live = F32 * min(shape.num_parameters, LIVE_ELEMENTS) if stage == 3 else 0.0
    if learner.offload != "none":
        # Stages 1 and 2 have another buffer, as large as the copy, between that and the weights.
        host = F32 * share * (5 if stage < 3 else 4)
        on_host = weights if learner.offload == "parameters" else 0.0
        return _States(
            weights - on_host, 0.0, 0.0, _bucket(trained, learner) + F32 * largest, 0.0, live, host + on_host
        )
    # On a CPU a parameter at a time (ZeRO makes one of all), on a GPU all at once.
    stepped = share if stage or on_gpu else largest
    temporaries = F32 * stepped * ((1 if on_gpu else 2) + (stage == 3))
    return _States(weights, moments + copy, gradients, _bucket(trained, learner), temporaries, live, 0.0)


def _bucket(trained: int, learner: LearnerSettings) -> float:
    """On a GPU under bf16 there is one for each type that gradients are sent in, of fp32 except in stage 3."""
    kinds = 1.0
    if learner.use_gpu and learner.precision == "bf16" and learner.zero_stage:
        kinds = 1.5 if learner.zero_stage == 3 else 2.0
    return F32 * min(trained, BUCKET_ELEMENTS) * kinds


def trained_parameters(shape: ModelShape, learner: LearnerSettings) -> int:
    """All of them, or those of the adapters."""
    if learner.lora is None or not shape.linears:
        return shape.num_parameters
    return learner.lora.rank * sum(size for name, size in shape.linears if learner.lora.adapts(name))


def _checkpoint(shape: ModelShape, learner: LearnerSettings) -> float:
    """Copies of the trained weights and moments in the CPU's memory, while a thread uploads them."""
    if not (learner.checkpoint_every or learner.checkpoint_every_s):
        return 0.0
    trained, workers = trained_parameters(shape, learner), learner.num_workers
    moments = MOMENTS * trained / (workers if learner.zero_stage else 1)
    best = trained / workers if learner.validate_every else 0
    return F32 * (trained / workers + moments + best)


def _export(shape: ModelShape, learner: LearnerSettings) -> float:
    """A worker's copies of weights on their way to a file; an adapter is merged into one whole weight at a time."""
    merging = MERGED * F32 * shape.largest if learner.lora else 0.0
    return min(F32 * shape.num_parameters, BATCHES * BATCH_BYTES) + merging


def torch_sees_a_gpu() -> bool:
    return torch.cuda.is_available()


def learner_device_bytes(learner: LearnerSettings) -> int | None:
    """Memory of a worker's device: as set, or this machine's; None if only the cluster knows."""
    return device_bytes(learner.memory_gib, learner.use_gpu, learner.num_workers)


def too_large(path: str, learner: LearnerSettings, memory: TrainingMemory, limit: int) -> str | None:
    """Why a training does not fit and which settings help; None if it fits."""
    if memory.total <= limit:
        return None
    large_activations = memory.parts.get("activations", 0.0) > 0.2 * memory.total
    parts = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in memory.parts.items())
    return (
        f"{path} needs {memory.total / GIB:,.1f} GiB on each worker {memory.moment} ({parts}), and its device has "
        f"{limit / GIB:,.1f}; what helps, in {path}: {'; '.join(remedies(learner, large_activations))}"
    )


def remedies(learner: LearnerSettings, large_activations: bool = True) -> list[str]:
    """The settings that make a training smaller."""
    found = []
    if not learner.activation_checkpointing and large_activations:
        found.append("activation_checkpointing: true")
    if learner.zero_stage < 3 and learner.num_workers > 1:
        found.append("zero_stage: 3")
    if learner.offload == "none" and learner.use_gpu:
        found.append("offload: optimizer" if learner.zero_stage else "zero_stage: 2 with offload: optimizer")
    if learner.lora is None:
        found.append("lora: {}")
    found += ["more num_workers"] if learner.zero_stage else []
    found.append(f"pack_tokens below {learner.pack_tokens}")
    return [*found, "fit: auto with memory_gib, which chooses"] if learner.fit == "off" else found
