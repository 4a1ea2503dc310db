"""The GPUs of this machine, whoever may use them. Ray decides that; this is for messages and reports alone."""

import torch


def num_gpus() -> int:
    """How many torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """Each kind of GPU with how many there are, and CUDA's version: ["8 x NVIDIA H100 80GB HBM3, 79 GiB", "CUDA 13.0"].

    [] without one.
    """
    found: dict[str, int] = {}
    for number in range(num_gpus()):
        properties = torch.cuda.get_device_properties(number)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found[name] = found.get(name, 0) + 1
    return [f"{count} x {name}" for name, count in found.items()] + ([f"CUDA {torch.version.cuda}"] if found else [])


def gpu_memory_bytes() -> int | None:
    """Of the smallest GPU; None without one."""
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(num_gpus())]
    return min(sizes) if sizes else None
