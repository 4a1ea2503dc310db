"""Skip the parts of the last decoder layer that scoring does not read; the scores do not change. Knows no heads.

Queries, output projection and feed-forward of the last layer run only for the positions that the heads read; keys and
values still cover the whole pack. With L layers this saves almost 1/L of a forward. For inference only.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from actors.kernels.varlen import READS, VARLEN

ATTENTION = ("self_attn", "attn")
OUTPUT = ("o_proj", "Wo")
QUERY = ("q_proj",)

log = logging.getLogger(__name__)


@contextmanager
def only_read(body: torch.nn.Module, reads_S: torch.Tensor, num_tokens: int) -> Iterator[None]:
    """Within this context a forward of a pack of `num_tokens` is right at `reads_S`, undefined elsewhere.

    `reads_S`: int64 [S], distinct, in order. Does nothing for a body whose last layer is not built as Llama's is.
    """
    layer = last_layer(body)
    if layer is None or not 0 < len(reads_S) < num_tokens:
        yield
        return
    attention = _child(layer, ATTENTION)
    assert attention is not None, "last_layer returns only layers that have one"
    with ExitStack() as hooks:
        for site in (layer.mlp, _child(attention, OUTPUT), _child(attention, QUERY)):
            if site is not None:
                hooks.callback(site.register_forward_pre_hook(_narrow(reads_S)).remove)
                hooks.callback(site.register_forward_hook(_widen(reads_S, num_tokens)).remove)
        if reads_S.device.type == "cpu":  # on a GPU one fused kernel over all queries is cheaper than a call for each
            setattr(attention, READS, reads_S)
            hooks.callback(delattr, attention, READS)
        yield


def last_layer(body: torch.nn.Module) -> torch.nn.Module | None:
    """The layer to narrow: attention and a plain feed-forward called `mlp`, and nothing else that mixes or projects."""
    layer, reason = _narrowable(body)
    if layer is None:
        _log_once(type(body).__name__, reason)
    return layer


def _narrowable(body: torch.nn.Module) -> tuple[torch.nn.Module | None, str]:
    """The last layer, or None and the reason."""
    layers = getattr(body, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not layers:
        return None, "no list called `layers`"
    config: Any = body.config
    if config._attn_implementation != VARLEN:
        return None, f"its attention is {config._attn_implementation}"
    layer = layers[config.num_hidden_layers - 1]
    name, attention, mlp = type(layer).__name__, _child(layer, ATTENTION), getattr(layer, "mlp", None)
    if attention is None or mlp is None or not _is_plain(mlp):
        return None, f"{name} has no `mlp` of linear layers beside an attention called {' or '.join(ATTENTION)}"
    rest = [m for child in layer.children() if child not in (attention, mlp) for m in child.modules()]
    if any(isinstance(m, torch.nn.Linear) for m in rest):
        return None, f"{name} has more than attention and `mlp`"
    return layer, ""


def _is_plain(mlp: torch.nn.Module) -> bool:
    """Linear layers and activations: each position by itself, a tensor out (experts may do otherwise)."""
    own = list(mlp.parameters(recurse=False))
    return not own and all(isinstance(m, torch.nn.Linear) or not list(m.parameters()) for m in mlp.children())


@functools.cache
def _log_once(name: str, reason: str) -> None:
    log.info("last layer: computed for all positions, %s: %s", name, reason)


def _child(module: torch.nn.Module, names: tuple[str, ...]) -> torch.nn.Module | None:
    return next((child for name in names if isinstance(child := getattr(module, name, None), torch.nn.Module)), None)


def _narrow(reads_S: torch.Tensor) -> Any:
    return lambda site, arguments: (arguments[0][:, reads_S], *arguments[1:])


def _widen(reads_S: torch.Tensor, num_tokens: int) -> Any:
    def after(site: torch.nn.Module, arguments: tuple[torch.Tensor, ...], out_1SD: torch.Tensor) -> torch.Tensor:
        wide_1TD = out_1SD.new_zeros(1, num_tokens, out_1SD.shape[2])
        wide_1TD[:, reads_S] = out_1SD
        return wide_1TD

    return after
