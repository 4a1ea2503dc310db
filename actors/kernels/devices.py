"""The device of this process: what Ray assigned to it, whatever torch sees.

Since 2.60 Ray no longer hides a machine's GPUs from processes that reserved none, so `torch.cuda.is_available()` only
says what the machine has. A process that reserved no GPU runs on the CPU; one that reserved k uses exactly these. A
driver and a process outside Ray reserved nothing: whoever wants a GPU there passes a device, e.g. "cuda".
"""

import os
from collections.abc import Sequence

import ray
import torch

from data.errors import UserError

CPU = torch.device("cpu")
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What Ray sets where a process reserved a GPU; torch numbers the GPUs in its order."""


def own_device(wanted: torch.device | str | None = None) -> torch.device:
    """`wanted` if it is given, else the first of `assigned_devices`; raises UserError as that does."""
    return assigned_devices()[0] if wanted is None else torch.device(wanted)


def assigned_devices() -> tuple[torch.device, ...]:
    """The GPUs that Ray assigned to this process, lowest first; the CPU alone if it assigned none.

    Raises UserError if torch cannot use a GPU that Ray assigned.
    """
    return devices_of(_assigned_ids(), os.environ.get(VISIBLE), torch.cuda.is_available())


def devices_of(ids: Sequence[str], visible: str | None, torch_sees_gpus: bool) -> tuple[torch.device, ...]:
    """torch's devices for the GPU `ids` that Ray assigned; `visible` is CUDA_VISIBLE_DEVICES, None if it is not set.

    Raises UserError as `assigned_devices` does.
    """
    if not ids:
        return (CPU,)
    if not torch_sees_gpus:
        raise UserError(
            f"Ray assigned GPU {', '.join(ids)} to this process, but its PyTorch {torch.__version__} can use none; "
            "install requirements-cuda.lock and a matching driver on that node, or reserve no GPU (use_gpu=false, "
            "gpus_per_actor=0, num_gpus=0)"
        )
    numbered = visible.split(",") if visible else []
    if numbered and not set(ids) <= set(numbered):
        raise UserError(
            f"Ray assigned GPU {', '.join(ids)} to this process, but {VISIBLE} is {visible}; leave {VISIBLE} to Ray: "
            "unset it in the job's runtime_env"
        )
    numbers = sorted(numbered.index(name) if numbered else int(name) for name in ids)
    return tuple(torch.device("cuda", number) for number in numbers)


def process_group_backend(use_gpu: bool) -> str:
    """Of a training whose workers reserve a GPU each, or none.

    Weights and gradients go over NCCL; sums on the host (losses, moments) over gloo, absent in Ray's default.
    """
    return "cpu:gloo,cuda:nccl" if use_gpu else "gloo"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _assigned_ids() -> list[str]:
    if not ray.is_initialized():
        return []
    return list(ray.get_runtime_context().get_accelerator_ids().get("GPU", []))
