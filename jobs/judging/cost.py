"""The cost of judging in requests, tokens and dollars, before and after. Knows no endpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.comparisons import Metrics
from data.judge_prompts import Match
from jobs.judging.settings import Prices


@dataclass(frozen=True)
class Cost:
    """Tokens, and dollars where there are prices."""

    requests: int = 0
    prompt_tokens: float = 0
    reply_tokens: float = 0
    dollars: float = 0
    guessed: int = 0
    """Requests whose tokens the endpoint did not count, so that they follow from characters."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def metrics(self) -> Metrics:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}

    def text(self, prices: Prices) -> str:
        """As people read it."""
        dollars = f"{self.dollars:.2f} dollars" if prices.prompt_dollars or prices.reply_dollars else "prices not set"
        return f"{self.prompt_tokens:,.0f} + {self.reply_tokens:,.0f} tokens, {dollars}"


def estimate(prices: Prices, matches: Sequence[Match]) -> Cost:
    """Before anything is asked, from characters."""
    prompt = sum(prices.tokens(m.system + m.prompt) for m in matches)
    reply = float(len(matches) * prices.reply_tokens)
    return Cost(len(matches), prompt, reply, prices.cost(prompt, reply), len(matches))


def cost_of(prices: Prices, match: Match, line: Mapping[str, Any]) -> Cost:
    """Of one reply: as the judge counted, else from characters; a failed request counts as free."""
    if line["error"]:
        return Cost(1)
    counted = line["prompt_tokens"] is not None and line["reply_tokens"] is not None
    prompt = line["prompt_tokens"] if counted else prices.tokens(match.system + match.prompt)
    reply = line["reply_tokens"] if counted else prices.tokens(line["reply"])
    return Cost(1, prompt, reply, prices.cost(prompt, reply), int(not counted))
