"""The question that `jobs.plan_scale` answers: sizes, machines, and the rates that benches measured. Only numbers."""

from pydantic import Field

from data.bounds import Amount, Positive, PositiveShare, Share, Size, Times, TokenBudget, Whole, Width, Workers
from data.record import Record


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


class PreparationScale(Record):
    """Stage `rows`: every source read, checked and rid of duplicates."""

    rows_per_file: Size = 2000
    """Rows of a source's file."""
    files_listed_per_s: Positive = 5000
    """Files that a listing of an object store names in a second: five pages of 1,000. Assumed; `make test-scale`
    counts the pages."""
    rows_per_s_per_cpu: Positive = 4500
    """Rows that one CPU reads, checks and writes in a second: as one loop did before; tasks have not been measured."""
    ids_per_s_per_cpu: Positive = 200_000
    """Ids that one CPU compares in a second, to find duplicates. Assumed."""


class PassRates(Record):
    """What a pass over rows takes beside its actors."""

    pieces_per_s: Positive = 100
    """Pieces that the driver hands out and takes back in a second. Assumed; `jobs.bench pieces` measures it."""
    merged_rows_per_s_per_cpu: Positive = 40_000
    """Rows that one CPU merges from pieces into a part in a second. Assumed: `jobs.bench pieces` includes it."""
    audited_rows_per_s_per_cpu: Positive = 500_000
    """Rows whose ids one CPU reads and compares in a second. Assumed: `jobs.bench annotate_scale` includes it."""
    footers_per_s: Positive = 400
    """Footers of Parquet files that are read in a second: 16 at a time, 40 ms each. Assumed."""
    example_rows_per_s: Positive = 20_000
    """Rows that a training worker reads and packs in a second. Each worker reads every window, so more workers do not
    make it faster. Assumed: `jobs.bench train` has it in its time."""
    report_s: Positive = 60
    """Seconds of the report beside its models: it reads counters and a sample of rows. Assumed."""


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
    prepare: PreparationScale = PreparationScale()
    """Stage `rows`."""
    passes: PassRates = PassRates()
    """All passes over rows."""
    train: TrainingScale = TrainingScale()
    """Step 3."""
    machines: Machines = Machines()
    """Network and storage."""
