"""Memory that ran out in a worker, as one sentence with the settings that help. Knows no training loop.

torch has a type of error for a GPU alone: on a CPU, in cuBLAS and in NCCL only the text says that memory was short.
"""

from collections.abc import Iterator

import torch

from actors.training.memory import remedies
from actors.training.settings import LearnerSettings
from data.errors import UserError
from data.printable import printable

ON_THE_GPU = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "HIP out of memory")
ON_THE_HOST = ("can't allocate memory", "Cannot allocate memory", "not enough memory: you tried to allocate")


def out_of_memory(error: BaseException, settings: LearnerSettings, step: int) -> UserError | None:
    """The sentence, if memory is what ran out; `step`: the one after which it did, 0 = before the first."""
    where = _where(error)
    if where is None:
        return None
    said = printable((str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0], 150)
    when = f"in step {step + 1}" if step else "at the start"
    return UserError(
        f"the {where}'s memory ran out {when} ({said}); what helps, in its learner: {'; '.join(remedies(settings))}"
    )


def _where(error: BaseException) -> str | None:
    for found in _causes(error):
        text = str(found)
        if isinstance(found, torch.OutOfMemoryError) or any(word in text for word in ON_THE_GPU):
            return "GPU"
        if isinstance(found, MemoryError) or (
            isinstance(found, RuntimeError | OSError) and any(word in text for word in ON_THE_HOST)
        ):
            return "node"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        yield found
        seen.append(found)
        found = found.__cause__ or found.__context__
