"""Adapters beside one model: every row of a forward gets what its own adapter adds, and the weights stay as they are.

peft's mixed batches do the same with a copy of each layer's bookkeeping in the model; here nothing in it is replaced,
so adapters come and go while it runs. Source of the form: LoRA, arXiv 2106.09685. Knows no request.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from actors.modeling.adapter_weights import AdapterWeights, adapter_weights, base_fingerprint
from actors.modeling.policy import Policy


@dataclass(frozen=True)
class LoadedAdapter:
    """One that was loaded; another version of the same name is another one."""

    number: int
    weights: AdapterWeights

    def salt(self, cache_salt: str) -> str:
        """Of the prefix cache: keys and values are this adapter's own."""
        return f"{self.number}\n{cache_salt}"


@dataclass(frozen=True)
class _Group:
    """Rows of one adapter."""

    weights: AdapterWeights
    rows_G: torch.Tensor | None
    """None = all of them."""

    def of(self, tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
        if self.rows_G is None:
            return tensor
        assert len(tensor) == num_rows, "a module that takes tokens in another order than rows has no adapter"
        return tensor[self.rows_G]

    def add(self, out: torch.Tensor, more: torch.Tensor) -> None:
        if self.rows_G is None:
            out.add_(more)
        else:
            out.index_add_(0, self.rows_G, more)


class AdapterRows:
    """The adapters of one policy's model."""

    def __init__(self, policy: Policy):
        self._policy, self._model = policy, policy.model
        self._base = base_fingerprint(policy, policy.folder, policy.model)
        self._numbers = itertools.count()
        self._hooked: set[str] = set()
        self._groups: tuple[_Group, ...] = ()
        self._num_rows = 0
        self._model.get_input_embeddings().register_forward_hook(self._embedded)
        self._model.get_output_embeddings().register_forward_hook(self._predicted)

    def load(self, name: str, folder: str) -> LoadedAdapter:
        """The adapter in a local folder; raises UserError as `adapter_weights` does."""
        weights = adapter_weights(name, folder, self._model, self._base)
        for module in sorted(weights.lora.keys() - self._hooked):
            self._model.get_submodule(module).register_forward_hook(partial(self._multiplied, module))
            self._hooked.add(module)
        whole = sum(tensor.nbytes for tensor in self._model.parameters())
        print(f"adapter {name}: {weights.num_bytes:,} bytes beside a base of {whole:,}", flush=True)
        return LoadedAdapter(next(self._numbers), weights)

    @contextmanager
    def of(self, adapters: Sequence[LoadedAdapter | None]) -> Iterator[None]:
        """Within this context a forward has a row for each of `adapters`; None = the base alone."""
        rows: dict[int, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(adapter.number, []).append(row)
        weights = {adapter.number: adapter.weights for adapter in adapters if adapter is not None}
        self._num_rows = len(adapters)
        self._groups = tuple(
            _Group(
                weights[number],
                None if len(own) == len(adapters) else torch.tensor(own, device=self._model.device),
            )
            for number, own in rows.items()
        )
        try:
            yield
        finally:
            self._groups = ()

    def _multiplied(self, name: str, module: torch.nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
        for group in self._groups:
            if (pair := group.weights.lora.get(name)) is not None:
                x = group.of(args[0], self._num_rows)
                group.add(out, x @ pair.a_RI.T @ pair.b_OR.T)

    def _embedded(self, module: torch.nn.Module, args: tuple[Any, ...], out_BTD: torch.Tensor) -> None:
        for group in self._groups:
            moved_ED = group.weights.inputs_ED
            if moved_ED is not None:
                last_BT = group.of(args[0], self._num_rows) - (module.num_embeddings - len(moved_ED))
                group.add(out_BTD, moved_ED[last_BT.clamp_min(0)] * (last_BT >= 0)[..., None])

    def _predicted(self, module: torch.nn.Module, args: tuple[Any, ...], out_BTV: torch.Tensor) -> None:
        for group in self._groups:
            moved_ED = group.weights.outputs_ED
            if moved_ED is not None:
                group.add(out_BTV[..., -len(moved_ED) :], group.of(args[0], self._num_rows) @ moved_ED.T)
