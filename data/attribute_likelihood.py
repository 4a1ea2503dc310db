"""Predicted values in, log P(a|x,y) out: how likely the requested labels are for an answer; and weights of answers.

SteerLM 2.0 (HelpSteer2, arXiv 2406.08673, section 4.5): a predictor's value r on a scale of 0 to 1 stands for a Beta
distribution of the label, and each label has the part of it that rounds to this label. Knows no model and no file.
"""

from collections.abc import Sequence

import numpy as np

from data.attributes import Attribute, AttributeSchema, Values

CONCENTRATION = 24.0
"""alpha + beta of the Beta distribution, as in the paper: a standard deviation of .1 in the middle of the scale."""
INNERMOST = 0.01
"""A value nearer to an end of the scale counts as so near: at the end itself the distribution would be a point, and
every other label impossible."""
LEAST = -60.0
"""No label is less likely than exp of this: differences of rounding errors have no logarithm."""


def log_label(attribute: Attribute, label: float, value: float) -> float:
    """log P(label | value), of a label on the attribute's scale and a predicted value in its units.

    The bins meet where rounding changes: a scale of 0 to 4 has edges at 0, 1/8, 3/8, 5/8, 7/8 and 1. Micro-example:
    over all labels the probabilities add up to 1. NaN for no value.
    """
    if np.isnan(value):
        return float("nan")
    from scipy.special import betainc  # a fifth of a second, which commands that only read settings do without

    steps = attribute.high - attribute.low
    share = float(np.clip((value - attribute.low) / steps, INNERMOST, 1 - INNERMOST))
    n = attribute.rounded(label) - attribute.low
    low, high = max(0.0, (n - 0.5) / steps), min(1.0, (n + 0.5) / steps)
    a, b = CONCENTRATION * share, CONCENTRATION * (1 - share)
    # Taken from the nearer end: beyond the mean, 1 - F would lose what is left of it to rounding.
    if low < share:
        probability = betainc(a, b, high) - betainc(a, b, low)
    else:
        probability = betainc(b, a, 1 - low) - betainc(b, a, 1 - high)
    return max(LEAST, float(np.log(probability))) if probability > 0 else LEAST


def log_labels(schema: AttributeSchema, requested: Values, predicted: Values) -> float:
    """log P(a|x,y) of all `requested` labels together, as if they were independent: the paper does not say otherwise.

    NaN if a requested attribute has no predicted value. What is not requested does not count.
    """
    return sum(log_label(schema[name], label, predicted.get(name, np.nan)) for name, label in requested.items())


def log_softmax(values_R: Sequence[float] | np.ndarray) -> np.ndarray:
    """Logarithms of shares that add up to 1, float64 [R]."""
    import scipy.special

    found: np.ndarray = scipy.special.log_softmax(np.asarray(values_R, np.float64))
    return found


def log_target(log_labels_R: Sequence[float], log_free_R: Sequence[float], log_policy_R: Sequence[float]) -> np.ndarray:
    """log w' of the answers to one prompt: what share each has in P(y|a,x), by importance weights.

    `log_free_R` is log P(y|x), `log_policy_R` log Q'(y|a,x) of the policy that wrote the answers.
    """
    numbers = (np.asarray(values, np.float64) for values in (log_labels_R, log_free_R, log_policy_R))
    labels_R, free_R, policy_R = numbers
    return log_softmax(labels_R + free_R - policy_R)


def divergence(log_target_R: np.ndarray, log_own_R: np.ndarray) -> float:
    """KL(w'||b') in nats: how far the shares of a policy are from the target."""
    return float(np.sum(np.exp(log_target_R) * (log_target_R - log_own_R)))


def effective(log_target_R: np.ndarray) -> float:
    """How many answers the weights stand for: 1 = one has all the weight."""
    return float(1 / np.sum(np.exp(2 * log_target_R)))
