"""The device that is checked, and what follows from it: precision, workers, Ray's resources."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import ray

from data.errors import UserError

T = TypeVar("T")
Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Target:
    """Where everything runs. On a CPU one thread a process, fp32, and a model that is far smaller."""

    device: Device
    num_gpus: int

    @property
    def on_gpu(self) -> bool:
        return self.device == "gpu"

    @property
    def torch_device(self) -> str:
        """Of a process to which Ray has given a device."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """bf16 needs AVX-512-BF16 or AMX on a CPU, so that fp32 is what all of them can be checked with."""
        return "bf16" if self.on_gpu else "fp32"

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]:
        return "bfloat16" if self.on_gpu else "float32"

    @property
    def num_workers(self) -> int:
        """Of a training: every GPU, or two processes, so that ZeRO has something to share out."""
        return self.num_gpus if self.on_gpu else 2

    @property
    def num_cpus(self) -> int:
        """Logical CPUs of Ray: one for each worker of a training, and some for Ray Data."""
        return self.num_workers + 2

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of `function` in a process of Ray that has the device: one GPU, or none."""
        task: Any = ray.remote(num_cpus=1, num_gpus=1 if self.on_gpu else 0, max_retries=0)(function)
        result: T = ray.get(task.remote(*arguments))
        return result


def target(device: Device, num_gpus: int) -> Target:
    """Raises UserError if a GPU is wanted and there is none."""
    if device == "gpu" and not num_gpus:
        raise UserError(
            "torch sees no GPU on this machine (is the driver installed, and torch's CUDA build: make setup "
            "TORCH=cuda?); --device cpu runs everything on the CPU, with a far smaller model"
        )
    return Target(device, num_gpus)
