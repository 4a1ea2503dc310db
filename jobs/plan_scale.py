"""Time, cost and memory of annotating a corpus and training a policy at the size of the paper, by arithmetic alone.

    python -m jobs.plan_scale [key.path=value ...]      e.g. annotate.num_gpus=512 train.parameters=7e10

Every constant is a setting; the help of a measured one names the bench. The last line is one JSON object.
"""

import json
import math
import os
import sys
from collections.abc import Iterator

from pydantic import Field

from actors.modeling.model_shape import ModelShape
from actors.training.memory import training_memory
from actors.training.settings import LearnerSettings
from cluster.settings.errors import SettingsError
from cluster.settings.help import help_text
from cluster.settings.load import load
from data.bounds import Amount, Positive, PositiveShare, Share, Size, Times, TokenBudget, Whole, Width, Workers
from data.record import Record

DAY_S, GIB = 86_400, 2**30


class Gpu(Record):
    """The accelerator."""

    name: str = "H100 SXM"
    """For the table only."""
    bf16_tflops: Positive = 989
    """Peak of dense bf16 arithmetic, 1e12 operations a second; the maker's value."""
    memory_gib: Positive = 80
    """Memory, GiB."""
    annotate_utilization: PositiveShare = 0.4
    """Share of the peak that a packed forward reaches. Assumed: nothing of ours has been measured on a GPU yet."""
    train_utilization: PositiveShare = 0.35
    """Share of the peak that a training step reaches while it does not wait for the network. Assumed."""
    dollars_an_hour: Amount = 3.0
    """Price of one."""


class AnnotationScale(Record):
    """Step 2 on a large corpus."""

    conversations: Positive = 1e9
    """Rows to annotate."""
    tokens_each: Positive = 600
    """Tokens of a conversation, all turns; one forward reads all of them."""
    parameters: Positive = 8e9
    """Of the predictor."""
    num_gpus: Size = 256
    """Actors of annotate.pool, one GPU each."""
    filled: PositiveShare = 0.99
    """Share of the packs' token budget that tokens take. Measured by `jobs.bench annotate_scale`."""
    job_share: PositiveShare = 0.88
    """Speed of the whole job over its bare kernel. Measured by `jobs.bench annotate_scale` (.88 to .93)."""
    bytes_in: Positive = 950
    """Bytes of a row in storage (Parquet, zstd): 1.6 a token, as the 4,771 rows of `jobs/presets/oasst.yaml` have."""
    bytes_out: Positive = 1010
    """Bytes of an annotated row, in pieces and in parts: 1.7 a token, the same rows with five predicted attributes."""
    shard_rows: Whole = Field(4096, ge=256, le=10**9)
    """annotate.pool.batch_rows: rows that an actor takes at a time; storage has one piece for them."""
    rows_per_file: Size = 200_000
    """Rows of an input file, and of a finished part."""
    tokenize_per_cpu: Positive = 150_000
    """Tokens a second that one CPU tokenizes. Assumed: fast tokenizers of large vocabularies do 100,000 to 300,000."""


class TrainingScale(Record):
    """Step 3 on many GPUs, ZeRO stage 3."""

    parameters: Positive = 70e9
    """Of the policy."""
    layers: Times = 80
    """Transformer layers."""
    width: Width = 8192
    """Hidden size."""
    feed_forward: Width = 28_672
    """Intermediate size."""
    vocabulary: Size = 128_256
    """Entries of the tokenizer."""
    tokens: Positive = 1e9
    """Tokens of the training set, all epochs together."""
    num_gpus: Size = 64
    """Ray Train workers, one GPU each."""
    gpus_per_node: Workers = 8
    """GPUs that share one network card's bandwidth."""
    pack_tokens: TokenBudget = 4096
    """Token budget of one pack."""
    packs_each: Size = 4
    """Packs of one worker in one optimizer step, one after the other."""


class Machines(Record):
    """Network and storage."""

    network_gbit: Positive = 400
    """Of a node to the others, 1e9 bits a second."""
    network_share: PositiveShare = 0.7
    """Share of it that collective operations reach. Assumed."""
    overlap: Share = 0.6
    """Share of the communication hidden behind arithmetic. Assumed."""
    storage_gbit: Positive = 25
    """Of a node to the object storage, 1e9 bits a second."""
    storage_requests: Positive = 3500
    """Writes a second that the storage takes below one prefix (Amazon S3's documented limit)."""
    cpus_beside: Positive = 8
    """CPUs beside each GPU, for reading, tokenizing and writing."""


class ScalePlan(Record):
    """The whole question."""

    RENAMED = {
        "annotate_utilisation": "annotate_utilization",
        "train_utilisation": "train_utilization",
        "rows_each": "packs_each",
    }

    gpu: Gpu = Gpu()
    """The accelerator."""
    annotate: AnnotationScale = AnnotationScale()
    """Step 2."""
    train: TrainingScale = TrainingScale()
    """Step 3."""
    machines: Machines = Machines()
    """Network and storage."""


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
    yield "work lost to a killed actor", _days(lost), lost
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
    yield "wall clock", _days(seconds), seconds
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


def _days(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.1f} days"


def main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(f"{__doc__}\nSettings, as key.path=value:\n\n{help_text(ScalePlan)}")
        return 0
    try:
        scale = load(ScalePlan, os.devnull, argv)
    except SettingsError as problem:
        print(f"python -m jobs.plan_scale: {problem}", file=sys.stderr)
        return 2
    parts = {"annotate": list(annotation(scale)), "train": list(training(scale))}
    a, t, gpu = scale.annotate, scale.train, scale.gpu.name
    titles = {
        "annotate": f"Annotating {a.conversations:,.0f} conversations on {a.num_gpus} x {gpu}",
        "train": f"Training {t.parameters / 1e9:g} B parameters on {t.num_gpus} x {gpu}",
    }
    for name, lines in parts.items():
        print(titles[name])
        for what, text, _ in lines:
            print(f"  {what:42}  {text}")
    wrong = problems(scale)
    for sentence in wrong:
        print(f"PROBLEM: {sentence}")
    numbers = {name: {what: round(value, 4) for what, _, value in lines} for name, lines in parts.items()}
    print(json.dumps(numbers | {"problems": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
