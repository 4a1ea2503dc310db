"""Fused attention over packs of segments on a GPU: flash-attn or torch's own, each checked before it is used.

Knows no model and no pack.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from actors.kernels.segment_attention import Window, per_segment

CHECK_LENGTHS = (1, 17, 130, 64)
CHECK_WINDOW = 24
CHECK_TOLERANCE = 0.03
"""A fused kernel may differ from the reference by this much of the largest value: some ten roundings of bf16 (2^-8)."""

Fused = Callable[..., torch.Tensor]
"""(query [T, heads, d], key and value [T, kv_heads, d], cu_seq_lens on the device, longest segment, causal, scale,
window) -> [T, heads, d]."""
FUSED_DTYPES = (torch.bfloat16, torch.float16)

log = logging.getLogger(__name__)


@functools.cache
def fused_kernel(
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    backward: bool,
    windowed: bool,
) -> Fused | None:
    """The variable-length kernel for these heads; None = one SDPA call per segment.

    Checked against SDPA and logged once: its output, with `backward` its gradients too, with `windowed` in a window.
    """
    use = f"{'forward and backward' if backward else 'forward'}{', sliding window' if windowed else ''}"
    shape = f"{use}, {num_heads}/{num_kv_heads} heads of {head_dim}, {dtype}, {device}"
    for name, kernel in FUSED[device.type].items():
        try:
            error = difference(kernel, device, dtype, num_heads, num_kv_heads, head_dim, backward, windowed)
        except ModuleNotFoundError:
            continue
        except (RuntimeError, ValueError, NotImplementedError) as refusal:  # an architecture or shape it lacks
            log.warning("attention: %s refuses %s: %s", name, shape, (str(refusal).splitlines() or [""])[0])
            continue
        if error <= CHECK_TOLERANCE:
            log.info("attention: %s (%s)", name, shape)
            return kernel
        log.warning("attention: %s is off by %.3g of the largest value for %s and is not used", name, error, shape)
    return None


def _flash_attn(
    q: Any, k: Any, v: Any, cu: Any, longest: int, causal: bool, scale: float | None, window: Window
) -> torch.Tensor:
    flash = importlib.import_module("flash_attn").flash_attn_varlen_func
    options = {"softmax_scale": scale, "causal": causal, "window_size": _sides(window, False)}
    out: torch.Tensor = flash(q, k, v, cu, cu, longest, longest, **options)
    return out


def _torch_varlen(
    q: Any, k: Any, v: Any, cu: Any, longest: int, causal: bool, scale: float | None, window: Window
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: Any = {"scale": scale, "window_size": _sides(window, causal), "enable_gqa": q.shape[1] != k.shape[1]}
    out: torch.Tensor = varlen_attn(q, k, v, cu, cu, longest, longest, **options)
    return out


def _sides(window: Window, causal: bool) -> tuple[int, int]:
    """Tokens to the left and to the right that are seen, by the convention of both kernels: -1 = all."""
    reach = -1 if not window else window - 1
    return reach, 0 if causal else reach


FUSED: dict[str, dict[str, Fused]] = {"cuda": {"flash_attn": _flash_attn, "torch.nn.attention.varlen": _torch_varlen}}
"""Device type -> module -> kernel. flash-attn first: where a user installed it, it is the newer one for their GPU."""


def difference(
    kernel: Fused,
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    backward: bool = True,
    windowed: bool = False,
) -> float:
    """Largest difference from the reference, causal or not, of outputs and with `backward` of gradients, as a share of
    the reference's largest value."""
    window = CHECK_WINDOW if windowed else None
    bounds = np.cumsum([0, *CHECK_LENGTHS])
    generator, cu = torch.Generator(device).manual_seed(0), torch.tensor(bounds, dtype=torch.int32, device=device)

    def reference(q: Any, k: Any, v: Any, causal: bool) -> torch.Tensor:
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        return per_segment(q, k, v, bounds.tolist(), causal, None, window, 0.0)[0]

    def fused(q: Any, k: Any, v: Any, causal: bool) -> torch.Tensor:
        return kernel(q, k, v, cu, max(CHECK_LENGTHS), causal, None, window)

    # A check may come in the middle of a forward: inference mode would keep gradients away, autocast change the dtype,
    # and activation checkpointing take the check's tensors for those of a layer.
    with (
        torch.inference_mode(False),  # first: it restores what it found, and the next one acts when it is made
        torch.set_grad_enabled(backward),
        torch.autocast(device.type, enabled=False),
        saved_tensors_hooks(lambda saved: saved, lambda saved: saved),
    ):
        qkv_THd = [
            torch.randn(int(bounds[-1]), heads, head_dim, generator=generator, device=device, dtype=dtype)
            for heads in (num_heads, num_kv_heads, num_kv_heads)
        ]
        runs = [
            _with_gradients(run, qkv_THd, causal, backward) for causal in (True, False) for run in (fused, reference)
        ]
    return float(np.max([_off(*runs[:2]), _off(*runs[2:])]))  # not a number if one is not


def _off(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = [(f.float(), e.float()) for f, e in zip(found, expected, strict=True)]
    return float(np.max([((f - e).abs().max() / e.abs().max()).item() for f, e in pairs]))


def _with_gradients(
    run: Callable[..., torch.Tensor], qkv_THd: Sequence[torch.Tensor], causal: bool, backward: bool
) -> list[torch.Tensor]:
    """The output, and the gradients of query, key and value for the gradient sin(0), sin(1), ... of the output."""
    inputs = [t.detach().requires_grad_(backward) for t in qkv_THd]
    out_THd = run(*inputs, causal)
    if not backward:
        return [out_THd]
    direction = torch.arange(out_THd.numel(), device=out_THd.device).sin().view_as(out_THd).to(out_THd.dtype)
    return [out_THd.detach(), *torch.autograd.grad(out_THd, inputs, direction)]


def kernel_names() -> dict[Fused, str]:
    return {kernel: name for kernels in FUSED.values() for name, kernel in kernels.items()}
