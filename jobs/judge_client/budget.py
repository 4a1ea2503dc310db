"""What a judge may take, in tokens and in money, and what it has taken. Knows no endpoint and no rater."""

from dataclasses import dataclass

TOKENS, COST = "budget", "max_cost"
"""Reasons why a request was not sent: tokens, or money, would not be enough for it."""
MILLION = 1e6


@dataclass(frozen=True)
class Usage:
    """Tokens of prompts and of replies."""

    prompt: float = 0.0
    reply: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.reply + other.reply)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt - other.prompt, self.reply - other.reply)


@dataclass(frozen=True)
class Budget:
    """Limits, None = no limit; and prices in one currency, for a million tokens."""

    tokens: float | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    reply_price: float = 0.0

    def cost(self, usage: Usage) -> float:
        return (usage.prompt * self.prompt_price + usage.reply * self.reply_price) / MILLION

    def exceeded_by(self, usage: Usage) -> str:
        """Which limit `usage` is above; "" if none."""
        if self.tokens is not None and usage.prompt + usage.reply > self.tokens:
            return TOKENS
        return COST if self.max_cost is not None and self.cost(usage) > self.max_cost else ""
