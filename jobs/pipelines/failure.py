"""Why Ray Train ended a training, as a sentence. Knows no stage."""

from collections.abc import Iterator

from ray.exceptions import OutOfMemoryError

from data.printable import printable

MEMORY_GUARD = ("memory monitor", "OutOfMemoryError", "running low on memory")
"""What Ray writes where its memory guard has killed a worker, and only the text arrives."""


def reason_of(error: BaseException) -> str:
    """What the workers said last; if Ray's memory guard ended them, what to change."""
    causes = list(_causes(error))
    if any(isinstance(c, OutOfMemoryError) or any(word in str(c) for word in MEMORY_GUARD) for c in causes):
        return (
            "Ray's memory guard killed a worker: its node was almost out of memory; lower pack_tokens or num_workers "
            "of the learner, or ray.object_store_mb, or use nodes with more memory"
        )
    workers = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = sorted({last for worker in workers if (last := _last_line(worker))})
    return printable("; ".join(lines), 250)


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
