"""Linear layers that multiply with oneDNN give what PyTorch's own give, and only those meant to."""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from actors.kernels import onednn
from actors.kernels.onednn import ROWS, generate_with_onednn, is_faster, train_with_onednn, use_onednn, works


def missing() -> str:
    """What this PyTorch lacks to multiply with oneDNN; "" = nothing."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch is built without oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch has no mkldnn._linear_pointwise"
    return ""


@pytest.fixture
def _on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MKL is as fast, too: the products must be right wherever they may be taken."""
    monkeypatch.setattr(onednn, "is_faster", works)


ON_ANY_CPU = pytest.mark.usefixtures("_on_any_cpu")
NEEDS_ONEDNN = pytest.mark.skipif(bool(missing()), reason=missing())


def test_onednn_works_wherever_pytorch_has_it() -> None:
    """A wrong product, or a change of PyTorch's private operator, must not pass as tests that are skipped."""
    assert works() == (not missing()), "oneDNN is there, but its products are wrong"
    assert not missing() or platform.machine() != "x86_64", f"PyTorch for x86-64 comes with oneDNN, but {missing()}"


@NEEDS_ONEDNN
@ON_ANY_CPU
@pytest.mark.parametrize("use", [use_onednn, generate_with_onednn])
@pytest.mark.parametrize("shape", [(1, 128, 48), (64, 48), (1, 37, 48), (3, 37, 48), (2, 1, 48), (1, 0, 48)])
@torch.inference_mode()
def test_the_products_are_fp32_products(shape: tuple[int, ...], use: Callable[[torch.nn.Module], int]) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.SiLU(), torch.nn.Linear(96, 16, bias=False))
    x = torch.randn(shape)
    expected = plain(x)
    assert use(plain) == 2
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-6)


@NEEDS_ONEDNN
@ON_ANY_CPU
@pytest.mark.parametrize("shape", [(1, 128, 48), (64, 48), (2, 37, 48), (1, 0, 48)])
def test_the_gradients_are_fp32_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.SiLU(), torch.nn.Linear(96, 16, bias=False))
    x, other = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 16)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((plain(x) * other).sum(), [x, *plain.parameters()])

    expected = gradients()
    assert train_with_onednn(plain) == 2
    for found, right in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@NEEDS_ONEDNN
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_cpu_without_avx512_multiplies_with_mkl(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(onednn, "is_faster", is_faster.__wrapped__)
    linear = torch.nn.Linear(64, 64)
    assert train_with_onednn(linear) == (capability == "AVX512")
    assert ("forward" in vars(linear)) == (capability == "AVX512")


@ON_ANY_CPU
@torch.inference_mode()
def test_other_dtypes_are_left_alone() -> None:
    half = torch.nn.Linear(8, 8).bfloat16()
    assert use_onednn(half) == 0
    assert "forward" not in vars(half)


@NEEDS_ONEDNN
@ON_ANY_CPU
@pytest.mark.parametrize("use", [use_onednn, generate_with_onednn])
@torch.inference_mode()
def test_many_row_lengths_do_not_grow_memory(use: Callable[[torch.nn.Module], int]) -> None:
    """Compiled products are kept: 400 lengths took some 400 MB when each went to oneDNN as it was."""
    linear = torch.nn.Linear(128, 344, bias=False)
    assert use(linear) == 1
    linear(torch.zeros(32 * ROWS, 128))
    before = _anonymous_mb()
    for length in range(1600, 2000):
        linear(torch.zeros(length, 128))
    assert _anonymous_mb() - before < 60


def _anonymous_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024
