"""Multiply fp32 matrices on a CPU with oneDNN in place of MKL, in inference and training. Knows no model.

PyTorch takes MKL for fp32, which leaves AMD's AVX-512 unused: on a Zen 5 core 107 GFLOP/s against oneDNN's 250.
Without AVX-512 MKL is left to it: there a layer trained 1.02 to 1.4 times slower with oneDNN (EPYC, AVX2, 128 to 768
wide, 512 and 1,024 rows). For bf16 PyTorch takes oneDNN itself. The products are true fp32, summed in another order.
"""

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import torch

ROWS = 64
"""A matrix is padded to a multiple of this many rows.

oneDNN compiles a product for each number of rows and keeps it, in bf16 too: 500 lengths took 590 MB."""
DECODED = 16
"""The weights of a generating model are laid out for this many rows."""
TOLERANCE = 1e-5
"""Share of the largest value; two orders of summing a thousand fp32 products differ by about 1e-6."""

log = logging.getLogger(__name__)


def pack_multiple(device: torch.device | str, pack_tokens: int = 0) -> int:
    """The number of tokens of a pack on this device should be a multiple of this.

    With `pack_tokens`, the budget of a training's packs, all packs get this one length: with any multiple of 64 a
    training compiled products, 8 MB each, for every new length.
    """
    if torch.device(device).type != "cpu":
        return 1
    return max(ROWS, -(-pack_tokens // ROWS) * ROWS)


def target_multiple(multiple: int) -> int:
    """The same for the positions read of a pack: an eighth of the pack's multiple."""
    return multiple if multiple == 1 else max(ROWS, multiple // 8 // ROWS * ROWS)


def use_onednn(model: torch.nn.Module) -> int:
    """Let the fp32 `Linear`s of `model` on a CPU multiply with oneDNN; returns their number. No gradient flows.

    Inputs whose rows are no multiple of ROWS still go to MKL. If oneDNN is missing, wrong or slower, this only logs it.
    """
    return _replace(model, _forward)


def train_with_onednn(model: torch.nn.Module) -> int:
    """The same for training and any number of rows: the product of the forward pass and both of the backward pass."""
    return _replace(model, _trained_forward)


def generate_with_onednn(model: torch.nn.Module) -> int:
    """The same for a few rows at a time, as in generation: a second copy of the weights is 2 to 3 times faster."""
    replaced = _replace(model, _packed_forward)
    for linear in model.modules() if replaced else ():
        if type(linear) is torch.nn.Linear and "forward" in vars(linear):
            linear.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), DECODED)
    return replaced


def multiply(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """[N, O], as a layer without bias gives it: with oneDNN where layers use it."""
    if _is_fp32_on_cpu(x_NI) and is_faster():
        return _product(x_NI, weight_OI, None)
    return torch.nn.functional.linear(x_NI, weight_OI)


def _is_fp32_on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _replace(model: torch.nn.Module, forward: Callable[[torch.nn.Linear, torch.Tensor], torch.Tensor]) -> int:
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear and _is_fp32_on_cpu(m.weight)]
    if not linears or not is_faster():
        return 0
    for linear in linears:
        linear.forward = types.MethodType(forward, linear)
    return len(linears)


@functools.cache
def is_faster() -> bool:
    """Is oneDNN what this CPU multiplies fp32 with? Not on AVX2 without AVX-512."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.info("linear layers: MKL, oneDNN is faster only with AVX-512")
        return False
    if works():
        log.info("linear layers: oneDNN")
        return True
    return False


@functools.cache
def works() -> bool:
    """Does this PyTorch multiply with oneDNN, and right? Tried once on random numbers."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        log.info("linear layers: MKL, this PyTorch has no oneDNN product for fp32")
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 33, 257), (129, 257), (129,)))
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        error = ((_product(x, weight, bias).double() - expected).abs().max() / expected.abs().max()).item()
    if error > TOLERANCE:
        log.warning("linear layers: MKL, oneDNN is off by %.1e of the largest value", error)
        return False
    return True


def _forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    num_rows = x.numel() // self.in_features
    if x.dtype != torch.float32 or not num_rows or num_rows % ROWS:
        return torch.nn.functional.linear(x, self.weight, self.bias)
    return _product(x, self.weight, self.bias)


def _packed_forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or not x.numel():
        return torch.nn.functional.linear(x, self.weight, self.bias)
    if x.numel() // self.in_features <= ROWS:  # tokens of running answers: at most `max_num_seqs` products are kept
        return _product(x, self.packed, self.bias)
    return _product(_filled(x), self.packed, self.bias)[: x.numel() // self.in_features].view(*x.shape[:-1], -1)


def _trained_forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or not x.numel() or torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(x, self.weight, self.bias)
    out: torch.Tensor = _Trained.apply(x, self.weight, self.bias)
    return out


class _Trained(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] or None -> [..., O]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        x_NI = _filled(x)
        ctx.save_for_backward(x_NI, weight_OI)
        return _product(x_NI, weight_OI, bias_O)[: x.numel() // x.shape[-1]].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        gradient_NO = _filled(gradient)
        num_rows = gradient.numel() // gradient.shape[-1]
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient_NO, weight_OI.t(), None)[:num_rows].view(*gradient.shape[:-1], -1) if of_x else None,
            _product(gradient_NO.t(), x_NI.t(), None) if of_weight else None,
            gradient_NO.sum(0) if of_bias else None,
        )


def _filled(x: torch.Tensor) -> torch.Tensor:
    """[..., C] as [N, C], with rows of zeros up to a multiple of ROWS: they add nothing to any product that counts."""
    x_NC = x.reshape(-1, x.shape[-1])
    missing = -len(x_NC) % ROWS
    return torch.nn.functional.pad(x_NC, (0, 0, 0, missing)) if missing else x_NC


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # What torch.compile emits for a frozen linear layer: no activation ("none"), no arguments of one.
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
