"""How long, how much and how big: annotating a corpus and training a policy at the size of the paper, by arithmetic. Starts nothing.

    python -m jobs.plan_scale [key.path=value ...]      e.g. annotate.num_gpus=512 train.parameters=7e10

Every constant is a setting; where one was measured, its help says by which bench. The last line is one JSON object.
"""

import json
import math
import os
import sys
from collections.abc import Iterator

from pydantic import Field

from actors.training.memory import Shape, training_memory
from actors.training.settings import LearnerSettings
from cluster.settings.help import help_text
from cluster.settings.load import SettingsError, load
from data.record import Record

DAY_S, GIB = 86_400, 2**30


class Gpu(Record):
    """The accelerator."""

    name: str = "H100 SXM"
    """For the table only."""
    bf16_tflops: float = Field(989, gt=0)
    """Dense bf16 arithmetic at its peak, 1e12 a second; the maker's figure."""
    memory_gib: float = Field(80, gt=0)
    """Memory."""
    annotate_utilisation: float = Field(0.4, gt=0, le=1)
    """Share of the peak that a packed forward reaches. Assumed: nothing of ours has been measured on a GPU yet."""
    train_utilisation: float = Field(0.35, gt=0, le=1)
    """Share of the peak that a training step reaches, without what it waits for the network. Assumed."""
    dollars_an_hour: float = Field(3.0, ge=0)
    """What one costs."""


class Annotation(Record):
    """Step 2 on a large corpus."""

    conversations: float = Field(1e9, gt=0)
    """Rows to annotate."""
    tokens_each: float = Field(600, gt=0)
    """Tokens of a conversation, all turns: they are read once, in one forward."""
    parameters: float = Field(8e9, gt=0)
    """Of the predictor."""
    num_gpus: int = Field(256, ge=1)
    """Actors of annotate.pool, one GPU each."""
    filled: float = Field(0.99, gt=0, le=1)
    """Tokens over what packed rows hold. Measured by `jobs.bench annotate_scale`."""
    job_share: float = Field(0.88, gt=0, le=1)
    """Speed of the whole job over its bare kernel. Measured by `jobs.bench annotate_scale` (.88 to .93)."""
    bytes_in: float = Field(950, gt=0)
    """Bytes of a row in storage (Parquet, zstd): 1.6 a token, as the 4,771 rows of `jobs/presets/oasst.yaml` have."""
    bytes_out: float = Field(1010, gt=0)
    """Bytes of an annotated row, in a piece and in a part alike: 1.7 a token, from the same rows with five predicted attributes."""
    shard_rows: int = Field(4096, ge=256)
    """annotate.pool.batch_rows: rows handed to an actor at a time, one piece in storage each."""
    rows_per_file: int = Field(200_000, ge=1)
    """Rows of an input file, and of a finished part."""
    tokenize_per_cpu: float = Field(150_000, gt=0)
    """Tokens a second that one CPU turns into ids. Assumed: fast tokenizers of large vocabularies do 100,000 to 300,000."""


class Training(Record):
    """Step 3 on many GPUs, ZeRO stage 3."""

    parameters: float = Field(70e9, gt=0)
    """Of the policy."""
    layers: int = Field(80, ge=1)
    """Transformer layers."""
    width: int = Field(8192, ge=1)
    """Hidden size."""
    feed_forward: int = Field(28_672, ge=1)
    """Intermediate size."""
    vocabulary: int = Field(128_256, ge=1)
    """Entries of the tokenizer."""
    tokens: float = Field(1e9, gt=0)
    """Tokens of the training set, all epochs together."""
    num_gpus: int = Field(64, ge=1)
    """Ray Train workers, one GPU each."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs that share one network card's bandwidth."""
    pack_tokens: int = Field(4096, ge=2)
    """Token budget of one packed row."""
    rows_each: int = Field(4, ge=1)
    """Rows of one worker in one optimizer step, one after the other."""


class Machines(Record):
    """Network and storage."""

    network_gbit: float = Field(400, gt=0)
    """Of a node to the others, 1e9 bits a second."""
    network_share: float = Field(0.7, gt=0, le=1)
    """What collective operations reach of it. Assumed."""
    overlap: float = Field(0.6, ge=0, le=1)
    """Share of the communication hidden behind arithmetic. Assumed."""
    storage_gbit: float = Field(25, gt=0)
    """Of a node to the object storage, 1e9 bits a second."""
    storage_requests: float = Field(3500, gt=0)
    """Writes a second that the storage takes below one prefix (Amazon S3's documented figure)."""
    cpus_beside: float = Field(8, gt=0)
    """CPUs beside each GPU, for reading, tokenising and writing."""


class Scale(Record):
    """The whole question."""

    gpu: Gpu = Gpu()
    """The accelerator."""
    annotate: Annotation = Annotation()
    """Step 2."""
    train: Training = Training()
    """Step 3."""
    machines: Machines = Machines()
    """Network and storage."""


Line = tuple[str, str, float]
"""What, how it is said, the bare number."""


def annotation(scale: Scale) -> Iterator[Line]:
    """Time, storage and what might be too slow."""
    a, gpu, machines = scale.annotate, scale.gpu, scale.machines
    # Two operations a weight and token: a forward. Attention is some percent more at these lengths.
    speed = gpu.bf16_tflops * 1e12 * gpu.annotate_utilisation / (2 * a.parameters) * a.job_share * a.filled
    seconds = a.conversations * a.tokens_each / (speed * a.num_gpus)
    pieces = a.conversations / a.shard_rows
    yield "tokens a second and GPU", f"{speed:,.0f}", speed
    yield "wall clock", _days(seconds), seconds
    yield "GPU hours", f"{seconds * a.num_gpus / 3600:,.0f}", seconds * a.num_gpus / 3600
    yield (
        "dollars for GPUs",
        f"{seconds * a.num_gpus / 3600 * gpu.dollars_an_hour:,.0f}",
        seconds * a.num_gpus / 3600 * gpu.dollars_an_hour,
    )
    # Pieces are merged into parts and removed: for a while both lie there, of the parts in the making.
    yield (
        "storage read and written",
        f"{a.conversations * a.bytes_in / 1e12:.2f} and {2 * a.conversations * a.bytes_out / 1e12:.2f} TB",
        a.conversations * a.bytes_in,
    )
    requests = (3 * pieces + 2 * a.conversations / a.rows_per_file) / seconds
    yield "storage writes and deletions a second", f"{requests:.2f} of {machines.storage_requests:,.0f}", requests
    network = a.conversations * (a.bytes_in + 2 * a.bytes_out) / seconds * 8 / 1e9
    yield "storage traffic of all nodes", f"{network:.3f} Gbit/s", network
    # Two shards in flight per actor, as text and as ids of 4 bytes.
    store = 2 * a.shard_rows * (4 * a.bytes_in + 4 * a.tokens_each)
    yield "object store per GPU", f"{store / 2**20:,.0f} MiB", store
    cpus = speed / a.tokenize_per_cpu
    yield "CPUs that tokenise, per GPU", f"{cpus:.2f} of {machines.cpus_beside:g}", cpus
    yield (
        "work lost to a killed actor",
        _days(a.shard_rows * a.tokens_each / speed),
        a.shard_rows * a.tokens_each / speed,
    )
    yield (
        "memory of the predictor, bf16",
        f"{2 * a.parameters / GIB:.1f} of {gpu.memory_gib:g} GiB",
        2 * a.parameters / GIB,
    )


def training(scale: Scale) -> Iterator[Line]:
    """Time, memory, network, checkpoints."""
    t, gpu, machines = scale.train, scale.gpu, scale.machines
    learner = LearnerSettings(
        num_workers=t.num_gpus,
        use_gpu=True,
        zero_stage=3,
        activation_checkpointing=True,
        pack_tokens=t.pack_tokens,
        max_tokens=t.pack_tokens,
        packs_per_step=t.num_gpus * t.rows_each,
    )
    memory = training_memory(Shape(int(t.parameters), t.layers, t.width, t.feed_forward, t.vocabulary), learner)
    step_tokens = t.num_gpus * t.rows_each * t.pack_tokens
    # Six operations a weight and token, eight with recomputation (arXiv 2205.05198).
    compute = 8 * t.parameters * t.rows_each * t.pack_tokens / (gpu.bf16_tflops * 1e12 * gpu.train_utilisation)
    # ZeRO-3 gathers the weights for the forward and again for the backward of each row, and scatters the gradients (arXiv 1910.02054, section 7): bf16.
    nodes = math.ceil(t.num_gpus / t.gpus_per_node)
    sent = 3 * 2 * t.parameters * t.rows_each * (nodes - 1) / nodes
    network = sent * 8 / (machines.network_gbit * 1e9 * machines.network_share)
    step = compute + network * (1 - machines.overlap)
    seconds = t.tokens / step_tokens * step
    checkpoint = 16 * t.parameters
    upload = checkpoint / nodes * 8 / (machines.storage_gbit * 1e9)
    yield "memory of a worker", f"{memory.total / GIB:.1f} of {gpu.memory_gib:g} GiB", memory.total / GIB
    yield (
        "one optimizer step",
        f"{step:.1f} s for {step_tokens:,} tokens: {compute:.1f} s arithmetic, {network:.1f} s network, {machines.overlap:.0%} hidden",
        step,
    )
    yield "tokens a second", f"{step_tokens / step:,.0f}", step_tokens / step
    yield "wall clock", _days(seconds), seconds
    yield "GPU hours", f"{seconds * t.num_gpus / 3600:,.0f}", seconds * t.num_gpus / 3600
    yield (
        "dollars for GPUs",
        f"{seconds * t.num_gpus / 3600 * gpu.dollars_an_hour:,.0f}",
        seconds * t.num_gpus / 3600 * gpu.dollars_an_hour,
    )
    yield "a checkpoint", f"{checkpoint / 1e12:.2f} TB, {upload:.0f} s to storage beside the training", checkpoint
    yield "memory for it on a node while it uploads", f"{checkpoint / nodes / GIB:.0f} GiB", checkpoint / nodes / GIB


def problems(scale: Scale) -> list[str]:
    """What would not work, with what mends it."""
    annotate, train = {k: v for k, _, v in annotation(scale)}, {k: v for k, _, v in training(scale)}
    found = []
    if annotate["CPUs that tokenise, per GPU"] > scale.machines.cpus_beside:
        found.append("annotation waits for tokenising: raise machines.cpus_beside (more CPU workers)")
    if annotate["storage writes and deletions a second"] > scale.machines.storage_requests:
        found.append("storage turns writes away: raise annotate.shard_rows")
    if annotate["memory of the predictor, bf16"] > 0.8 * scale.gpu.memory_gib:
        found.append(
            "the predictor leaves no room for activations: a GPU with more gpu.memory_gib, or a smaller annotate.parameters"
        )
    if train["memory of a worker"] > 0.92 * scale.gpu.memory_gib:
        found.append(
            "a training worker does not fit: raise train.num_gpus, lower train.pack_tokens, or offload the optimizer"
        )
    return found


def _days(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 3600:.1f} h"
        if seconds < 2 * DAY_S
        else f"{seconds / DAY_S:.1f} days"
    )


def main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(f"{__doc__}\nSettings, as key.path=value:\n\n{help_text(Scale)}")
        return 0
    try:
        scale = load(Scale, os.devnull, argv)
    except SettingsError as problem:
        print(f"python -m jobs.plan_scale: {problem}", file=sys.stderr)
        return 2
    parts = {"annotate": list(annotation(scale)), "train": list(training(scale))}
    titles = {
        "annotate": f"Annotating {scale.annotate.conversations:,.0f} conversations on {scale.annotate.num_gpus} x {scale.gpu.name}",
        "train": f"Training {scale.train.parameters / 1e9:g} B parameters on {scale.train.num_gpus} x {scale.gpu.name}",
    }
    for name, lines in parts.items():
        print(titles[name])
        for what, said, _ in lines:
            print(f"  {what:42}  {said}")
    wrong = problems(scale)
    for sentence in wrong:
        print(f"PROBLEM: {sentence}")
    print(
        json.dumps(
            {name: {what: round(value, 4) for what, _, value in lines} for name, lines in parts.items()}
            | {"problems": wrong}
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
