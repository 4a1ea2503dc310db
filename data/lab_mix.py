"""How common each combination of values is among the answers of the synthetic world. Knows no text."""

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np

from data.attributes import shipped

SCHEMA = shipped("lab")
HELPFULNESS, CREATIVITY, HUMOR, TOXICITY, VERBOSITY = SCHEMA.names
DECORATIONS = (CREATIVITY, HUMOR, TOXICITY)
LOW, HIGH = SCHEMA.attributes[0].low, SCHEMA.attributes[0].high

# Shares of the values 0..4. Even: a fifth of the answers have the top value. Mediocre: 6 % have 3 or more, like
# the helpful answers of a world that a short budget could not learn.
_EVEN = (0.20, 0.20, 0.20, 0.20, 0.20)
_MEDIOCRE = (0.50, 0.30, 0.14, 0.05, 0.01)


def combinations(
    skew: float, plain_share: float, allows: Callable[[Mapping[str, int]], bool]
) -> tuple[list[dict[str, int]], list[float]]:
    """Every combination that `allows` does not rule out, and the running sum of their weights; see LabSettings."""
    weights = [(1 - skew) * even + skew * mediocre for even, mediocre in zip(_EVEN, _MEDIOCRE, strict=True)]
    every = (
        dict(zip(SCHEMA.names, values, strict=True))
        for values in itertools.product(range(LOW, HIGH + 1), repeat=len(SCHEMA.names))
    )
    allowed = [values for values in every if allows(values)]
    shares = np.array([math.prod(weights[value] for value in values.values()) for values in allowed])
    if plain_share:
        plain = np.array([not any(values[name] for name in DECORATIONS) for values in allowed])
        shares /= shares.sum()
        shares = (1 - plain_share) * shares + plain_share * plain * shares / shares[plain].sum()
    return allowed, list(itertools.accumulate(shares.tolist()))
