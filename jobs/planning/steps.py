"""Time, cost, memory and possible bottlenecks of annotation and of training, by arithmetic alone. Prints nothing."""

import math
from collections.abc import Iterator

from actors.modeling.model_shape import ModelShape
from actors.training.memory import training_memory
from actors.training.settings import LearnerSettings
from jobs.planning.settings import Gpu, ScalePlan, TrainingScale

DAY_S, GIB = 86_400, 2**30


Line = tuple[str, str, float]
"""A name, its text, the bare number."""


def annotation(scale: ScalePlan) -> Iterator[Line]:
    """Time, storage and possible bottlenecks."""
    a, gpu, machines = scale.annotate, scale.gpu, scale.machines
    # Two operations a weight and token: a forward. Attention is some percent more at these lengths.
    speed = gpu.bf16_tflops * 1e12 * gpu.annotate_utilization / (2 * a.parameters) * a.job_share * a.filled
    seconds = a.conversations * a.tokens_each / (speed * a.num_gpus)
    yield "tokens a second and GPU", f"{speed:,.0f}", speed
    yield from _cost(seconds, a.num_gpus, gpu)
    # Pieces are merged into parts and removed, so every row is written twice.
    read, written = a.conversations * a.bytes_in, 2 * a.conversations * a.bytes_out
    yield "storage read and written", f"{read / 1e12:.2f} and {written / 1e12:.2f} TB", read
    requests = (3 * a.conversations / a.shard_rows + 2 * a.conversations / a.rows_per_file) / seconds
    yield "storage writes and deletions a second", f"{requests:.2f} of {machines.storage_requests:,.0f}", requests
    network = (read + written) / seconds * 8 / 1e9
    yield "storage traffic of all nodes", f"{network:.3f} Gbit/s", network
    # Two shards in flight per actor, as text and as ids of 4 bytes.
    store = 2 * a.shard_rows * (4 * a.bytes_in + 4 * a.tokens_each)
    yield "object store per GPU", f"{store / 2**20:,.0f} MiB", store
    cpus = speed / a.tokenize_per_cpu
    yield "CPUs that tokenize, per GPU", f"{cpus:.2f} of {machines.cpus_beside:g}", cpus
    lost = a.shard_rows * a.tokens_each / speed
    yield "work lost to a killed actor", duration(lost), lost
    memory = 2 * a.parameters / GIB
    yield "memory of the predictor, bf16", f"{memory:.1f} of {gpu.memory_gib:g} GiB", memory


def training(scale: ScalePlan) -> Iterator[Line]:
    """Time, memory, network, checkpoints."""
    t, gpu, machines = scale.train, scale.gpu, scale.machines
    memory = _worker_bytes(t) / GIB
    step_tokens = t.num_gpus * t.packs_each * t.pack_tokens
    # Six operations a weight and token, eight with recomputation (arXiv 2205.05198).
    compute = 8 * t.parameters * t.packs_each * t.pack_tokens / (gpu.bf16_tflops * 1e12 * gpu.train_utilization)
    # ZeRO-3 gathers the bf16 weights for the forward and for the backward of each pack, and scatters the gradients
    # (arXiv 1910.02054, section 7).
    nodes = math.ceil(t.num_gpus / t.gpus_per_node)
    sent = 3 * 2 * t.parameters * t.packs_each * (nodes - 1) / nodes
    network = sent * 8 / (machines.network_gbit * 1e9 * machines.network_share)
    step = compute + network * (1 - machines.overlap)
    checkpoint = 16 * t.parameters
    upload = checkpoint / nodes * 8 / (machines.storage_gbit * 1e9)
    yield "memory of a worker", f"{memory:.1f} of {gpu.memory_gib:g} GiB", memory
    parts = f"{compute:.1f} s arithmetic, {network:.1f} s network, {machines.overlap:.0%} hidden"
    yield "one optimizer step", f"{step:.1f} s for {step_tokens:,} tokens: {parts}", step
    yield "tokens a second", f"{step_tokens / step:,.0f}", step_tokens / step
    yield from _cost(t.tokens / step_tokens * step, t.num_gpus, gpu)
    yield "a checkpoint", f"{checkpoint / 1e12:.2f} TB, {upload:.0f} s to storage beside the training", checkpoint
    yield "memory for it on a node while it uploads", f"{checkpoint / nodes / GIB:.0f} GiB", checkpoint / nodes / GIB


def _worker_bytes(t: TrainingScale) -> float:
    learner = LearnerSettings(
        num_workers=t.num_gpus,
        use_gpu=True,
        zero_stage=3,
        activation_checkpointing=True,
        pack_tokens=t.pack_tokens,
        max_tokens=t.pack_tokens,
        packs_per_step=t.num_gpus * t.packs_each,
    )
    shape = ModelShape(int(t.parameters), t.layers, t.width, t.feed_forward, t.vocabulary, t.width, t.width // 8)
    return training_memory(shape, learner).total


def _cost(seconds: float, num_gpus: int, gpu: Gpu) -> Iterator[Line]:
    hours = seconds * num_gpus / 3600
    yield "wall clock", duration(seconds), seconds
    yield "GPU hours", f"{hours:,.0f}", hours
    yield "dollars for GPUs", f"{hours * gpu.dollars_an_hour:,.0f}", hours * gpu.dollars_an_hour


def problems(scale: ScalePlan) -> list[str]:
    """What would not work, and the settings to change."""
    annotate, train = {k: v for k, _, v in annotation(scale)}, {k: v for k, _, v in training(scale)}
    found = []
    if annotate["CPUs that tokenize, per GPU"] > scale.machines.cpus_beside:
        found.append("annotation waits for tokenizing: raise machines.cpus_beside (more CPU workers)")
    if annotate["storage writes and deletions a second"] > scale.machines.storage_requests:
        found.append("storage rejects writes: raise annotate.shard_rows")
    if annotate["memory of the predictor, bf16"] > 0.8 * scale.gpu.memory_gib:
        found.append(
            "the predictor leaves no memory for activations: raise gpu.memory_gib or lower annotate.parameters"
        )
    if train["memory of a worker"] > 0.92 * scale.gpu.memory_gib:
        found.append(
            "a training worker does not fit: raise train.num_gpus, lower train.pack_tokens, or offload the optimizer"
        )
    return found


def duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.1f} days"
