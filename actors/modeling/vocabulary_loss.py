"""The loss of a causal language model over its vocabulary, of any architecture, without all its logits.

Few logits take the model's own forward. Many are made some positions at a time in the output layer itself
(`actors.kernels.cross_entropy`), so that ZeRO-3 fetches its weights as ever. What a model does to its logits afterwards
(Gemma's soft cap, Granite's and Cohere's scale) is measured once on known numbers.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from actors.kernels.cross_entropy import IGNORED, LogitMap, fits, summed_cross_entropy
from actors.modeling.model_folder import vocabulary_size

KNOWN = (1.0, -2.0, 0.25, -7.5, 30.0, 1e6, -1e6)
"""Logits of the measurement; the large ones show a cap."""
TOLERANCE = 1e-5

Weigh = Callable[[torch.Tensor], torch.Tensor]
"""The negative log-likelihood of each target [N], without a gradient -> how often it counts in the sum [N]."""

log = logging.getLogger(__name__)


class VocabularyLoss:
    """The summed negative log-likelihood of chosen tokens under `model`."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.head: Any = model.get_output_embeddings()
        size = vocabulary_size(model)
        self.num_tokens = size if size < model.config.get_text_config().vocab_size else None
        """Entries of a padded vocabulary that count."""
        self.logit_map, reason = _measured(model, self.head)
        if reason:
            log.warning("cross-entropy: all logits of a pack at once, %s: %s", type(model).__name__, reason)

    def __call__(
        self,
        pack: dict[str, Any],
        positions_N: torch.Tensor,
        targets_N: torch.Tensor,
        weigh: Weigh | None = None,
    ) -> torch.Tensor:
        """In nats; position p of the pack predicts its target. A target of IGNORED counts nothing.

        `weigh` sees what the targets cost before the sum is taken: the weights may depend on all of them.
        """
        if self.logit_map is None or fits(len(positions_N), self.head.out_features):
            # Only the positions that predict a trained token reach the vocabulary: masked logits are never computed.
            logits_NV = self.model(**pack, logits_to_keep=positions_N).logits[0].float()
            if self.num_tokens:
                logits_NV = logits_NV[:, : self.num_tokens]
            return _summed(logits_NV, targets_N, weigh)
        capture = _Capture()
        with _in_place_of(self.model, {self.head: capture}):
            self.model(**pack, logits_to_keep=positions_N)
        assert capture.hidden is not None, "the forward reached the output layer when it was measured"
        return self._of_head(capture.hidden[0], targets_N, weigh)

    def _of_head(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor, weigh: Weigh | None) -> torch.Tensor:
        head = self.head

        def summed(hidden_ND: torch.Tensor, factors_N: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
            options = head.bias, self.logit_map, self.num_tokens, factors_N
            return summed_cross_entropy(hidden_ND, head.weight, targets_N, *options)

        def forward(hidden_ND: torch.Tensor) -> torch.Tensor:
            factors_N = None
            if weigh:
                with torch.no_grad():
                    factors_N = weigh(summed(hidden_ND, None)[1])
            return summed(hidden_ND, factors_N)[0]

        before = vars(head).get("forward")
        head.forward = forward
        try:
            loss: torch.Tensor = head(hidden_ND)  # a call of the module: its hooks fetch sharded weights
        finally:
            if before is None:
                del head.forward
            else:
                head.forward = before
        return loss


def _summed(logits_NV: torch.Tensor, targets_N: torch.Tensor, weigh: Weigh | None) -> torch.Tensor:
    if weigh is None:
        return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum", ignore_index=IGNORED)
    nats_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none", ignore_index=IGNORED)
    return (nats_N * weigh(nats_N.detach())).sum()


class _Capture(torch.nn.Module):
    """Keeps what would reach the output layer; its own output stands for the logits."""

    def __init__(self, known: tuple[float, ...] = ()):
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self.known = known

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.hidden = hidden
        return hidden.new_tensor(self.known).expand(*hidden.shape[:-1], len(self.known)).clone()


class _Body(torch.nn.Module):
    """Stands for the layers: its hidden states are zeros."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, *_: Any, **__: Any) -> Any:
        return _BodyOutput(torch.zeros(1, 1, self.width))


class _BodyOutput:
    def __init__(self, hidden: torch.Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, _: int) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None


def _measured(model: PreTrainedModel, head: Any) -> tuple[LogitMap | None, str]:
    """What `model` does to its logits, or None and the reason; computes with no weight, so they may be sharded."""
    if type(head) is not torch.nn.Linear:
        return None, f"its output layer is a {type(head).__name__}"
    body = getattr(model, model.base_model_prefix, model)
    if body is model:
        return None, "its layers are not apart from its output layer"
    stands = {head: _Capture(KNOWN), body: _Body(model.config.get_text_config().hidden_size)}
    try:
        with torch.no_grad(), _in_place_of(model, stands):
            found = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False, logits_to_keep=1).logits
        values = [float(v) for v in found.flatten()]
    except Exception as error:  # whatever an unknown model does with its layers
        return None, f"its forward cannot be measured ({type(error).__name__}: {error})"
    if len(values) != len(KNOWN):
        return None, f"{len(KNOWN)} logits became {len(values)}"
    logit_map = _fitted(values)
    expected = logit_map(torch.tensor(KNOWN)).tolist()
    if not all(math.isclose(v, e, rel_tol=TOLERANCE) for v, e in zip(values, expected, strict=True)):
        return None, "its logits are neither scaled nor capped by tanh"
    return logit_map, ""


def _fitted(values: list[float]) -> LogitMap:
    """The map that gives the first and the largest of `values` for those of KNOWN."""
    at_one, highest = values[0], max(values)
    capped = 0 < at_one < highest < at_one * KNOWN[5] * (1 - TOLERANCE)
    scale = highest * math.atanh(at_one / highest) if capped else at_one
    return LogitMap(1.0 if abs(scale - 1) < TOLERANCE / 10 else scale, highest if capped else None)


@contextmanager
def _in_place_of(model: torch.nn.Module, stands: dict[Any, torch.nn.Module]) -> Iterator[None]:
    """Within this context `model` has other modules in place of some of its own."""
    owners = [
        (parent, name, stands[child])
        for parent in model.modules()
        for name, child in parent.named_children()
        if child in stands
    ]
    before = [(parent, name, getattr(parent, name)) for parent, name, _ in owners]
    try:
        for parent, name, stand in owners:
            setattr(parent, name, stand)
        yield
    finally:
        for parent, name, module in before:
            setattr(parent, name, module)
