"""Is what this machine computes right? Fused attention, packs and greedy answers, each against a plain computation.

For `make gpu-smoke`. Knows no Ray and decides nothing: it returns differences, relative so that no model matters.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from actors.kernels.fused_attention import FUSED, Fused, fused_kernel, kernel_names
from actors.kernels.segment_attention import Window, per_segment
from actors.kernels.varlen import VARLEN, packed
from actors.modeling.model_folder import load_format
from actors.modeling.policy import Policy, load_causal_lm

LENGTHS = (1, 17, 130, 64, 300)
"""Segments of a checked pack: a single token, odd lengths, one longer than a block of any kernel."""


@dataclass(frozen=True)
class FusedCheck:
    """A fused kernel beside one SDPA call for each segment; errors are shares of the reference's largest value."""

    name: str
    forward: float
    backward: float
    """The largest over the gradients of query, key and value."""


Heads = tuple[int, int, int, Window]
"""Query heads, key and value heads, their width, window."""


def check_all_fused(device: str, dtype: str, shapes: Sequence[Heads]) -> list[FusedCheck | None]:
    """`check_fused` for each of `shapes`."""
    return [check_fused(device, dtype, *shape) for shape in shapes]


def check_fused(
    device: str, dtype: str, num_heads: int, num_kv_heads: int, head_dim: int, window: Window = None
) -> FusedCheck | None:
    """The fused kernel that this device gets for these heads, causal; None = it gets none."""
    place, kind = torch.empty(0, device=device).device, getattr(torch, dtype)
    kernel = None
    if place.type in FUSED:
        kernel = fused_kernel(place, kind, num_heads, num_kv_heads, head_dim, True, bool(window))
    if kernel is None:
        return None
    generator = torch.Generator(place).manual_seed(1)
    bounds = [0, *itertools.accumulate(LENGTHS)]
    qkv = [
        torch.randn(1, heads, bounds[-1], head_dim, generator=generator, device=place, dtype=kind)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    ]
    upstream = torch.randn(bounds[-1], num_heads, head_dim, generator=generator, device=place, dtype=kind)
    found = _fused(kernel, qkv, bounds, upstream, window)
    expected = _reference(qkv, bounds, upstream, window)
    forward, *backward = (_difference(a, b) for a, b in zip(found, expected, strict=True))
    return FusedCheck(kernel_names()[kernel], forward, float(np.max(backward)))


def _fused(
    kernel: Fused, qkv: Sequence[torch.Tensor], bounds: list[int], upstream: torch.Tensor, window: Window
) -> list[torch.Tensor]:
    """Output and gradients, as a training calls the kernel."""
    own = [t.detach().clone().requires_grad_() for t in qkv]
    cu = torch.tensor(bounds, dtype=torch.int32, device=upstream.device)
    out = kernel(*(t[0].transpose(0, 1) for t in own), cu, max(LENGTHS), True, None, window)
    out.backward(upstream)
    return _with_gradients(out, own)


def _reference(
    qkv: Sequence[torch.Tensor], bounds: list[int], upstream: torch.Tensor, window: Window
) -> list[torch.Tensor]:
    """The same in fp32, one SDPA call for each segment."""
    own = [t.detach().float().requires_grad_() for t in qkv]
    out = per_segment(own[0], own[1], own[2], bounds, True, None, window, 0.0)[0]
    out.backward(upstream.float())
    return _with_gradients(out, own)


def _with_gradients(out: torch.Tensor, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    gradients = [t.grad for t in own]
    return [out.detach().float(), *(g.float() for g in gradients if g is not None)]


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def packed_difference(folder: str, device: str, dtype: str) -> float:
    """Largest difference of the logits of a pack's segments from those of each alone, as a share of their spread."""
    model = load_causal_lm(folder, load_format(folder), VARLEN, getattr(torch, dtype)).to(device).eval()
    rng, vocabulary = np.random.default_rng(0), model.config.get_text_config().vocab_size
    segments = [rng.integers(0, vocabulary, length) for length in LENGTHS]
    together = torch.split(_logits(model, segments, device), LENGTHS)
    alone = [_logits(model, [segment], device) for segment in segments]
    spread = torch.cat(alone).std()
    return float(np.max([float((a - b).abs().max() / spread) for a, b in zip(together, alone, strict=True)]))


def _logits(model: PreTrainedModel, segments: Sequence[np.ndarray], device: str) -> torch.Tensor:
    """[T, V], float32."""
    logits: torch.Tensor = model(**packed(segments, device)).logits[0]
    return logits.float()


@torch.no_grad()
def greedy_gap(folder: str, device: str, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """How far the tokens of greedy answers are from the likeliest ones, in standard deviations of a step's logits.

    `answers`: the ids of prompt and answer. The reference is one plain forward in fp32, without a cache.
    """
    model, gaps = Policy.load(folder, "float32", device).model, [0.0]
    for prompt, answer in answers:
        ids = torch.tensor([[*prompt, *answer]], device=device)
        logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        chosen_T = logits_TV.gather(1, ids[0, len(prompt) :, None])[:, 0]
        gap_T = (logits_TV.max(1).values - chosen_T) / logits_TV.std(1)
        gaps.append(float(gap_T.max()))
    return float(np.max(gaps))  # not a number if one is not
