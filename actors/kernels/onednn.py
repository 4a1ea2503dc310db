"""fp32 matrix products on a CPU with oneDNN in place of MKL, for inference and for training. Knows no model: any module's `Linear`s will do.

PyTorch multiplies fp32 matrices with MKL, which leaves AMD's AVX-512 unused: on a Zen 5 core 107 GFLOP/s against oneDNN's 250.
bf16 goes to oneDNN by itself. The products are true fp32, summed in another order.
"""

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import torch

ROWS = 64
"""oneDNN compiles a product for each number of rows and keeps it, in bf16 too, about 1 MB each for some 2,000 rows: 500 lengths took 590 MB. So rows of
tokens are filled to multiples of this."""
DECODED = 16
"""Rows for which the weights of a generating model are laid out."""
TOLERANCE = 1e-5
"""Of the largest value; fp32 sums of a thousand products differ by about 1e-6 when their order does."""

log = logging.getLogger(__name__)


def pack_multiple(device: torch.device | str, pack_tokens: int = 0) -> int:
    """What the tokens of a packed row on this device should be a multiple of.

    With `pack_tokens`, the budget of all rows of a training: that. All rows then have one length; with all multiples of 64 a training kept compiling
    products, 8 MB for each new length, as long as it met new lengths.
    """
    if torch.device(device).type != "cpu":
        return 1
    return max(ROWS, -(-pack_tokens // ROWS) * ROWS)


def target_multiple(multiple: int) -> int:
    """The same for what is read of a row, which is a part of it: an eighth of the row's multiple."""
    return multiple if multiple == 1 else max(ROWS, multiple // 8 // ROWS * ROWS)


def use_onednn(model: torch.nn.Module) -> int:
    """Let the fp32 `Linear`s of `model` that lie on a CPU multiply with oneDNN, these instances only; returns how many do.

    They do where the input has a multiple of ROWS rows. For inference: no gradient flows through them. Where oneDNN is missing or wrong nothing
    changes, and the log says so.
    """
    return _replace(model, _forward)


def train_with_onednn(model: torch.nn.Module) -> int:
    """The same for training, whatever the number of rows: all three products of a layer, that of the forward pass and those of the backward pass."""
    return _replace(model, _trained_forward)


def generate_with_onednn(model: torch.nn.Module) -> int:
    """The same for generation, a few rows at a time: with a second copy of the weights, in the order in which oneDNN reads them (2 to 3 times MKL's speed)."""
    replaced = _replace(model, _packed_forward)
    for linear in model.modules() if replaced else ():
        if type(linear) is torch.nn.Linear and "forward" in vars(linear):
            linear.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), DECODED)
    return replaced


def multiply(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """[N, O], as a layer without bias gives it: with oneDNN where that is what layers use."""
    ours = x_NI.device.type == "cpu" and x_NI.dtype == torch.float32 and works()
    return _product(x_NI, weight_OI, None) if ours else torch.nn.functional.linear(x_NI, weight_OI)


def _replace(model: torch.nn.Module, forward: Callable[[torch.nn.Linear, torch.Tensor], torch.Tensor]) -> int:
    linears = [
        m
        for m in model.modules()
        if type(m) is torch.nn.Linear and m.weight.device.type == "cpu" and m.weight.dtype == torch.float32
    ]
    if not linears or not works():
        return 0
    for linear in linears:
        linear.forward = types.MethodType(forward, linear)
    return len(linears)


@functools.cache
def works() -> bool:
    """Does this build multiply with oneDNN, and right? Tried once on random numbers."""
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
    log.info("linear layers: oneDNN")
    return True


def _forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    num_rows = x.numel() // self.in_features
    if x.dtype != torch.float32 or not num_rows or num_rows % ROWS:
        return torch.nn.functional.linear(x, self.weight, self.bias)
    return _product(x, self.weight, self.bias)


def _packed_forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or not x.numel():
        return torch.nn.functional.linear(x, self.weight, self.bias)
    if x.numel() // self.in_features <= ROWS:  # tokens of running answers: as many products are kept as there are slots
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
