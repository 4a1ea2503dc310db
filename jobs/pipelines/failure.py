"""Why Ray Train ended a training, as a sentence. Knows no stage."""

from collections.abc import Iterator, Sequence

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2.api.exceptions import NCCLHangError, WorkerGroupError

from data.printable import printable

MEMORY_GUARD = ("memory monitor", "OutOfMemoryError", "running low on memory")
"""What Ray writes where its memory guard has killed a worker, and only the text arrives."""
HUNG = (
    *("Timed out waiting", "wait timeout after", "waiting for clients"),
    *("collective operation timeout", "collective operation timed out"),
)
"""What gloo, NCCL, torch's store and Ray Train write where a worker has waited for the others for too long."""


def reason_of(error: BaseException) -> str:
    """What ended the workers and what to change, if it is known; else what the workers said last."""
    causes = list(_causes(error))
    if any(isinstance(c, OutOfMemoryError) or any(word in str(c) for word in MEMORY_GUARD) for c in causes):
        return (
            "Ray's memory guard killed a worker: its node was almost out of memory; lower pack_tokens or num_workers "
            "of the learner, or ray.object_store_mb, or use nodes with more memory"
        )
    if hung := _line_with(HUNG, causes) or ("NCCL makes no progress" if isinstance(error, NCCLHangError) else ""):
        return (
            f"a worker waited for the others longer than collective_timeout_s ({printable(hung, 120)}); raise it if "
            "one is only slow, as with slow storage, else see the log of the worker that did not answer"
        )
    workers = list(getattr(error, "worker_failures", {}).values()) or [error]
    if isinstance(error, WorkerGroupError) and any(isinstance(c, RayActorError) for c in workers):
        return (
            "a worker's process died, more than max_failures times: its node was lost, the system ended it for want "
            "of memory (dmesg on its node says so; lower pack_tokens), or NCCL did after collective_timeout_s (its "
            "log says so)"
        )
    lines = sorted({last for worker in workers if (last := _last_line(worker))})
    return printable("; ".join(lines), 250)


def _line_with(words: Sequence[str], causes: Sequence[BaseException]) -> str:
    lines = (line.strip() for cause in causes for line in str(cause).splitlines())
    return next((line for line in lines if any(word in line for word in words)), "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, those of the workers, and what caused them."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [found.__cause__, found.__context__, getattr(found, "controller_failure", None)]
            waiting += [*getattr(found, "worker_failures", {}).values()]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
