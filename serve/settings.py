"""The settings of the endpoint, each with its reason. Knows no YAML and no command line (`cluster.settings` does)."""

from typing import Literal

from pydantic import Field, model_validator

from data.record import Record

LOOPBACK = ("127.0.0.1", "localhost")


class ServeSettings(Record):
    """What `python -m serve` needs to know."""

    policy: str = "newest"
    """A policy folder or a finished run's folder (any URI), or "newest": the newest finished run in `storage`."""
    storage: str = "runs"
    """Where runs live (any URI); only read if `policy` is "newest"."""
    name: str | None = None
    """The `model` that callers name; None = the name of the run, or of the folder."""
    host: str = "127.0.0.1"
    """Address to listen on. There are no keys yet, so only this machine's own is allowed."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights and activations; float32 gives on a CPU what training measured."""
    min_replicas: int = Field(1, ge=1)
    """Copies of the policy that always run."""
    max_replicas: int = Field(1, ge=1)
    """Copies of the policy at the busiest."""
    target_ongoing_requests: float = Field(12, gt=0)
    """Requests per replica above which another replica is started; a little under max_slots."""
    num_cpus: float = Field(0.5, ge=0)
    """CPUs that Ray sets aside for a replica; a share, so that a small machine has room for Ray's own."""
    num_gpus: float = Field(0, ge=0)
    """GPUs that Ray sets aside for a replica; 0 = it runs on the CPU."""
    threads: int = Field(1, ge=1)
    """CPU threads of torch in a replica; on shared cores more than one is slower, not faster."""
    max_slots: int = Field(16, ge=1)
    """Answers that a replica writes at the same time."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens; a request may ask for less."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Requests in a replica, waiting for a slot included; twice max_slots keeps the slots full."""
    max_queued_requests: int = Field(64, ge=0)
    """Requests that wait for a replica; one more is turned away with 429."""
    retry_after_s: int = Field(3, ge=1)
    """When a caller that was turned away should come back."""
    max_body_bytes: int = Field(1 << 20, ge=1)
    """Longest request body; a longer one gets 413."""
    start_timeout_s: float = Field(600, gt=0)
    """How long loading the policy may take."""
    object_store_bytes: int = Field(200 << 20, ge=80 << 20)
    """Ray's shared memory when a local Ray is started; the endpoint hardly uses it."""

    @model_validator(mode="after")
    def _consistent(self) -> "ServeSettings":
        if self.host not in LOOPBACK:
            raise ValueError(
                f"host is {self.host!r}, but without keys the endpoint is for this machine only: set host to 127.0.0.1 and put a proxy with keys in front"
            )
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}: raise it")
        return self
