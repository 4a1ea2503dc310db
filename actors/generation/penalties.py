"""Bias and penalties: what a request's rule adds to its logits before a token is drawn. Knows no model, no engine."""

from collections.abc import Sequence

import torch

from actors.generation.protocol import Sampling


class Penalties:
    """The bias and the penalties of one request. Counts the tokens of its answer as they come."""

    @classmethod
    def of(
        cls, sampling: Sampling, prompt_ids: Sequence[int], num_tokens: int, device: torch.device
    ) -> "Penalties | None":
        """None for a rule that changes no logits: such a row costs nothing."""
        own = (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty - 1)
        return cls(sampling, prompt_ids, num_tokens, device) if any(own) or sampling.logit_bias else None

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], num_tokens: int, device: torch.device):
        self._sampling = sampling
        self._counts_V = torch.zeros(num_tokens, device=device)  # of the answer
        self._seen_V = torch.zeros(num_tokens, dtype=torch.bool, device=device)  # in prompt or answer
        self._seen_V[torch.tensor(list(prompt_ids), dtype=torch.int64, device=device)] = True
        self._biased = torch.tensor(list(sampling.logit_bias), dtype=torch.int64, device=device)
        self._biases = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32, device=device)

    def count(self, token: int) -> None:
        """The answer has one more token."""
        self._counts_V[token] += 1
        self._seen_V[token] = True

    def apply_(self, logits_V: torch.Tensor) -> None:
        """In place, on fp32 logits [V]; in the order that `Sampling` states."""
        own = self._sampling
        logits_V[self._biased] += self._biases
        if own.repetition_penalty != 1:
            scaled_V = torch.where(logits_V > 0, logits_V / own.repetition_penalty, logits_V * own.repetition_penalty)
            logits_V.copy_(scaled_V.where(self._seen_V, logits_V))
        if own.frequency_penalty:
            logits_V -= own.frequency_penalty * self._counts_V
        if own.presence_penalty:
            logits_V -= own.presence_penalty * (self._counts_V > 0)
