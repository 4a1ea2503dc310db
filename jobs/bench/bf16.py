"""The bf16 side of a bench, where this machine's CPU has arithmetic for it. Knows nothing of what is measured."""

from typing import TypeVar

from actors.kernels.devices import own_device
from actors.kernels.precision import why_not_bf16
from jobs.runner.stage import log

T = TypeVar("T")


def bf16_side(side: dict[str, T]) -> dict[str, T]:
    """`side`; or {}, with the reason in the log: without such arithmetic it would run a hundred times longer."""
    if reason := why_not_bf16(own_device()):
        log(f"bf16_vs_fp32 is left out: {reason}")
        return {}
    return side
