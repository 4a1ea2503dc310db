"""How fast a device multiplies in each dtype, measured, and the dtype that this speaks for. Knows no model.

The processor's name does not tell: a CPU without AVX-512-BF16 or AMX, as in most laptops, multiplies bf16 some hundred
times slower than fp32, and one with it twice as fast.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from actors.kernels.devices import synchronize
from actors.kernels.onednn import multiply

AUTO = "auto"
FULL, HALF = "float32", "bfloat16"
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""As the settings of a training name them, and messages."""
GAIN = 1.25
"""bf16 must be so many times as fast to be chosen: its rounding has to buy something, and no noise may decide."""
SLOW = 10.0
"""A set dtype that is so many times slower than the best is a warning: a run may never end."""
SIZES = {"cpu": 256, "cuda": 4096}
"""Rows and columns of the matrices: on a CPU small, because a slow dtype is tried as well."""
ROUNDS, BUDGET_S = 10, 0.1
"""Times that each dtype is tried at most, and seconds after which a slow one is not tried again."""


@dataclass(frozen=True)
class Precision:
    """A dtype, and what to log about it."""

    dtype: str
    """As torch names it."""
    line: str
    """"" = nothing to say."""


def usable_dtype(wanted: str, device: torch.device, setting: str) -> str:
    """`wanted` (a dtype as torch names it), or what "auto" stands for on `device` by measurement; prints its line.

    `setting` is the path of the setting, for the line.
    """
    seconds = {name: seconds_per_gflop(device, name) for name in dict.fromkeys((FULL, HALF, wanted)) if name != AUTO}
    found = judged(wanted, seconds, str(device), setting)
    if found.line:
        print(found.line, flush=True)  # Ray brings what a worker prints to the driver's terminal
    return found.dtype


def judged(wanted: str, seconds: Mapping[str, float], where: str, setting: str, before: str = "") -> Precision:
    """The same from `seconds_per_gflop` of each dtype; `where` names what they were measured on.

    `before`: what "auto" stood for when this work began ("" = it begins now). It goes on so, unless that is SLOW here.
    """
    best = min((FULL, HALF), key=lambda name: seconds[name])
    if wanted != AUTO:
        slower, names = seconds[wanted] / seconds[best], (_named(wanted, setting), _named(best, setting))
        line = (
            f"warning: {setting} is {names[0]}, which {where} multiplies {slower:,.0f} times slower than {names[1]} "
            f"({_speeds(seconds, wanted, best)}); set {setting} to auto or {names[1]}"
        )
        return Precision(wanted, line if slower >= SLOW else "")
    reason = _compared(seconds, where)
    if before and seconds[before] < SLOW * seconds[best]:
        return Precision(before, f"{setting} auto: {_named(before, setting)}, as before; {reason}")
    own = HALF if seconds[FULL] / seconds[HALF] >= GAIN else FULL
    if before:
        changed = f"{_named(own, setting)} from here on, {_named(before, setting)} until now"
        return Precision(own, f"warning: {setting} auto: {changed}; {reason}")
    return Precision(own, f"{setting} auto: {_named(own, setting)}; {reason}")


def why_not_bf16(device: torch.device) -> str:
    """Why "auto" is not bf16 on `device`; "" if it is."""
    seconds = {name: seconds_per_gflop(device, name) for name in (FULL, HALF)}
    found = judged(AUTO, seconds, str(device), "dtype")
    return "" if found.dtype == HALF else _compared(seconds, str(device))


def _compared(seconds: Mapping[str, float], where: str) -> str:
    times = seconds[FULL] / seconds[HALF]
    ratio = f"{times:,.1f} times as fast as" if times >= 1 else f"{1 / times:,.1f} times slower than"
    return f"{where} multiplies bf16 {ratio} fp32 ({_speeds(seconds, HALF, FULL)})"


def _speeds(seconds: Mapping[str, float], one: str, other: str) -> str:
    return f"{1 / seconds[one]:,.1f} against {1 / seconds[other]:,.1f} GFLOP/s"


def _named(dtype: str, setting: str) -> str:
    """As the setting spells it: fp32 in a training's `precision`, float32 in any `dtype`."""
    return SHORT[dtype] if setting.endswith("precision") else dtype


@functools.cache
def seconds_per_gflop(device: torch.device, dtype: str) -> float:
    """Seconds per 1e9 operations of a linear layer's three products, forward and backward: the best of some rounds.

    Libraries have a routine for each layout, and in bf16 one may be slow where another is not.
    """
    generator = torch.Generator(device).manual_seed(0)  # torch's own stays as it was: it makes weights and dropout
    size = SIZES[device.type]
    x, weight = (
        torch.randn(size, size, device=device, generator=generator).to(getattr(torch, dtype)) for _ in range(2)
    )
    seconds = _best_seconds(functools.partial(_step, x, weight), device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # an engine that shares the GPU looks at what is free
    return seconds / (3 * 2 * size**3 / 1e9)


@torch.no_grad()
def _step(x_NN: torch.Tensor, weight_NN: torch.Tensor) -> None:
    multiply(x_NN, weight_NN)
    multiply(x_NN, weight_NN.t())
    multiply(x_NN.t(), weight_NN.t())


def _best_seconds(work: Callable[[], None], device: torch.device) -> float:
    """The first time does not count: libraries compile then, or choose a routine."""
    best, started = float("inf"), time.perf_counter()
    for number in range(ROUNDS + 1):
        before = time.perf_counter()
        work()
        synchronize(device)
        after = time.perf_counter()
        best = min(best, after - before) if number else best
        if number and after - started > BUDGET_S:
            break
    return best
