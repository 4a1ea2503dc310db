"""How the tokens of one answer are chosen: its sampling, its random numbers, its penalties, its grammar.

Knows no model and no engine: logits in, tokens and their log-probabilities out.
"""

from collections.abc import Sequence

import numpy as np
import torch

from actors.generation.grammar import GrammarState
from actors.generation.logprobs import of_tokens
from actors.generation.penalties import Penalties
from actors.generation.protocol import Sampling, TokenLogprob
from actors.generation.sampling import sample


class AnswerRule:
    """The rule of one answer, and what its tokens so far mean for the next one."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        num_tokens: int,
        device: torch.device,
        grammar: GrammarState | None = None,
    ):
        """`num_tokens`: the width of the logits."""
        self.sampling, self.grammar = sampling, grammar
        self.rng = np.random.default_rng(sampling.seed)
        self.penalties = Penalties.of(sampling, prompt_ids, num_tokens, device)

    def accept(self, token: int) -> None:
        """The answer has one more token."""
        if self.penalties is not None:
            self.penalties.count(token)
        if self.grammar is not None:
            self.grammar.accept(token)


def next_tokens(rules: Sequence[AnswerRule], logits_BV: torch.Tensor) -> list[tuple[int | None, TokenLogprob | None]]:
    """(token, its log-probability if asked for) of each row; changes `logits_BV`.

    A token is None where the row's grammar allows none. Rows without grammar and penalties cost nothing here, and their
    tokens do not depend on the rows beside them.
    """
    stuck = _ban(rules, logits_BV)
    penalized_BV = _penalized(rules, logits_BV)
    tokens = sample(penalized_BV, [rule.sampling for rule in rules], [rule.rng for rule in rules])
    logprobs: list[TokenLogprob | None] = [None] * len(rules)
    for row, rule in enumerate(rules):
        if rule.sampling.logprobs is not None and row not in stuck:
            [logprobs[row]] = of_tokens(logits_BV[row : row + 1], [tokens[row]], rule.sampling.logprobs)
    return [
        (None if row in stuck else token, logprob)
        for row, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True))
    ]


def _ban(rules: Sequence[AnswerRule], logits_BV: torch.Tensor) -> set[int]:
    """Set to -inf what the rows' grammars do not allow; returns the rows whose grammar allows nothing."""
    stuck = set()
    for row, rule in enumerate(rules):
        if rule.grammar is not None:
            allowed_V = rule.grammar.allowed()
            if allowed_V.any():
                logits_BV[row].masked_fill_(~allowed_V.to(logits_BV.device), -torch.inf)
            else:
                stuck.add(row)
    return stuck


def _penalized(rules: Sequence[AnswerRule], logits_BV: torch.Tensor) -> torch.Tensor:
    """With the rows' biases and penalties: `logits_BV` itself if there are none, else a copy in fp32."""
    if all(rule.penalties is None for rule in rules):
        return logits_BV
    penalized_BV = logits_BV.float().clone()
    for row, rule in enumerate(rules):
        if rule.penalties is not None:
            rule.penalties.apply_(penalized_BV[row])
    return penalized_BV
