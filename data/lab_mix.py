"""How common each combination of values is among the answers of the synthetic world. Knows no text."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

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
    skew: float, shares_of: Mapping[int, float], allows: Callable[[Mapping[str, int]], bool]
) -> tuple[list[dict[str, int]], list[float]]:
    """Every combination that `allows` does not rule out, and the running sum of their weights; see LabSettings.

    `shares_of`: number of decorations that an answer has -> share of the answers that have so many by design.
    """
    weights = [(1 - skew) * even + skew * mediocre for even, mediocre in zip(_EVEN, _MEDIOCRE, strict=True)]
    every = (
        dict(zip(SCHEMA.names, values, strict=True))
        for values in itertools.product(range(LOW, HIGH + 1), repeat=len(SCHEMA.names))
    )
    allowed = [values for values in every if allows(values)]
    shares = np.array([math.prod(weights[value] for value in values.values()) for values in allowed])
    if any(shares_of.values()):
        shares = _with_shares_of(shares, shares_of, allowed)
    return allowed, list(itertools.accumulate(shares.tolist()))


def _with_shares_of(
    shares: np.ndarray, shares_of: Mapping[int, float], allowed: Sequence[Mapping[str, int]]
) -> np.ndarray:
    """Shares of all combinations, those with some numbers of decorations raised."""
    decorations = np.array([sum(values[name] > 0 for name in DECORATIONS) for values in allowed])
    by_design = [share * _of(shares, decorations == number) for number, share in shares_of.items() if share]
    mixed: np.ndarray = (1 - sum(shares_of.values())) * shares / shares.sum() + sum(by_design)
    return mixed


def _of(shares: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The shares among the wanted combinations alone."""
    kept: np.ndarray = np.where(wanted, shares, 0.0)
    return kept / kept.sum()
