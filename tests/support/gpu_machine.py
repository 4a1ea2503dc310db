"""A machine whose PyTorch sees a GPU that this process did not reserve. Whatever touches it fails: there is none."""

import torch


def see_a_gpu() -> None:
    """From now on torch says that there is one, as it does on any GPU machine in a process that reserved none."""
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
