"""fp32 matrix products on a CPU with oneDNN in place of MKL, for inference. Knows no model: any module's `Linear`s will do.

PyTorch multiplies fp32 matrices with MKL, which leaves AMD's AVX-512 unused: on a Zen 5 core 107 GFLOP/s against oneDNN's 250.
bf16 goes to oneDNN by itself. The products are true fp32, summed in another order.
"""

import functools
import logging
import types

import torch

ROWS = 64
"""oneDNN compiles a product for each number of rows and keeps it, about 1 MB each for some 2,000 rows: 500 lengths took 590 MB. Only multiples count."""
TOLERANCE = 1e-5
"""Of the largest value; fp32 sums of a thousand products differ by about 1e-6 when their order does."""

log = logging.getLogger(__name__)


def use_onednn(model: torch.nn.Module) -> int:
    """Let the fp32 `Linear`s of `model` that lie on a CPU multiply with oneDNN, these instances only; returns how many do.

    They do where the input has a multiple of ROWS rows. For inference: no gradient flows through them. Where oneDNN is missing or wrong nothing
    changes, and the log says so.
    """
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.device.type == "cpu" and m.weight.dtype == torch.float32]
    if not linears or not works():
        return 0
    for linear in linears:
        linear.forward = types.MethodType(_forward, linear)
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


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # What torch.compile emits for a frozen linear layer: no activation ("none"), no arguments of one.
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
