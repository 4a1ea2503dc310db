"""The memory that a training needs on each worker, from settings alone.

Sources: ZeRO, arXiv 1910.02054, section 3; activations, arXiv 2205.05198, section 4.
"""

import os
from dataclasses import dataclass

import torch
from transformers.configuration_utils import PreTrainedConfig

from actors.modeling.model_folder import load_config
from actors.modeling.tiny_llama import SmallModel
from actors.training.settings import LearnerSettings

GIB = 2**30
# Bytes per parameter: weights and gradients in fp32, AdamW's two moments.
WEIGHTS, GRADIENTS, MOMENTS = 4, 4, 8
# DeepSpeed's ZeRO steps a copy of its share of the weights.
COPY = 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on; without `layers` its activations are unknown."""

    num_parameters: int
    layers: int = 0
    width: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    adapted: int = 0
    """Sum of inputs and outputs of the linear layers that LoRA adapts by default."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one worker."""

    weights: float
    gradients: float
    optimizer: float
    activations: float | None
    """None = the model's shape is unknown."""
    host: float = 0.0
    """Bytes that offload moves to the CPU's memory."""

    @property
    def total(self) -> float:
        """On the device."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0.0)


def shape_of(model: str | None, num_parameters: int | None, small: SmallModel) -> Shape | None:
    """The shape of a `model` on disk, or of the new `small` one; without either, the size alone if it is known."""
    if model is None:
        body = (small.num_layers, small.hidden_size, small.intermediate_size)
        return _shape(small.num_parameters, *body, small.vocab_size)
    if os.path.isdir(model):
        config: PreTrainedConfig = load_config(model).get_text_config()
        layers, width = config.num_hidden_layers, config.hidden_size
        feed_forward = getattr(config, "intermediate_size", None) or 4 * width
        vocabulary = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
        estimate = layers * (4 * width**2 + 3 * width * feed_forward) + vocabulary
        return _shape(num_parameters or estimate, layers, width, feed_forward, config.vocab_size)
    return Shape(num_parameters) if num_parameters else None


def _shape(num_parameters: int, layers: int, width: int, feed_forward: int, vocabulary: int) -> Shape:
    adapted = layers * (8 * width + 3 * (width + feed_forward))
    return Shape(num_parameters, layers, width, feed_forward, vocabulary, adapted)


def training_memory(shape: Shape, learner: LearnerSettings) -> TrainingMemory:
    """Most bytes that one worker holds; stage 1 shards the optimizer, 2 the gradients too, 3 the weights too."""
    trained = shape.num_parameters
    if learner.lora and shape.adapted:
        trained = min(trained, learner.lora.rank * shape.adapted)
    stage, workers = learner.zero_stage, learner.num_workers
    weights = WEIGHTS * shape.num_parameters / (workers if stage == 3 else 1)
    gradients = GRADIENTS * trained / (workers if stage >= 2 else 1)
    optimizer = (MOMENTS + (COPY if stage else 0)) * trained / (workers if stage else 1)
    host = 0.0
    if learner.offload != "none":
        host, gradients, optimizer = gradients + optimizer, 0.0, 0.0
    if learner.offload == "parameters":
        # One layer at a time comes to the device.
        host, weights = host + weights, WEIGHTS * shape.num_parameters / max(shape.layers, 1)
    return TrainingMemory(weights, gradients, optimizer, _activations(shape, learner), host)


def _activations(shape: Shape, learner: LearnerSettings) -> float | None:
    """Of one pack: attention never stores its matrix; logits are those of the trained tokens, at worst of all."""
    if not shape.layers:
        return None
    # What "auto" will be is measured on the workers: on a GPU bf16, on a CPU maybe not.
    bytes_each = 2 if learner.precision == "bf16" or (learner.precision == "auto" and learner.use_gpu) else 4
    # For the backward pass: inputs of both norms in fp32; query, key, value, attention's output; gate, up, product.
    layer = learner.pack_tokens * (2 * 4 * shape.width + bytes_each * (6 * shape.width + 4 * shape.feed_forward))
    inputs = shape.layers * learner.pack_tokens * 4 * shape.width
    kept = inputs + layer if learner.activation_checkpointing else shape.layers * layer
    logits = learner.pack_tokens * shape.vocabulary * (4 + 4 + bytes_each)
    return float(kept + logits)


def torch_sees_a_gpu() -> bool:
    return torch.cuda.is_available()


def device_bytes(learner: LearnerSettings) -> int | None:
    """Memory of a worker's device: as set, or this machine's; None if only the cluster knows."""
    if learner.memory_gib is not None:
        return int(learner.memory_gib * GIB)
    if learner.use_gpu:
        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    if os.environ.get("RAY_ADDRESS"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // learner.num_workers


def too_large(path: str, learner: LearnerSettings, memory: TrainingMemory, limit: int) -> str | None:
    """Why a training does not fit and which settings help; None if it fits."""
    if memory.total <= limit:
        return None
    large_activations = (memory.activations or 0) > 0.2 * memory.total
    kinds = ("weights", "gradients", "optimizer", "activations")
    parts = [f"{kind} {size / GIB:,.1f}" for kind in kinds if (size := getattr(memory, kind)) is not None]
    return (
        f"{path} needs {memory.total / GIB:,.1f} GiB on each worker ({', '.join(parts)}), and its device has "
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
    return [*found, f"pack_tokens below {learner.pack_tokens}"]
