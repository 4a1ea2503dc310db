"""RewardBench's sections (arXiv 2403.13787): which subsets each has, and how they are averaged. Knows no model.

A subset counts with its number of pairs. math-prm, which has 447, counts with as many as all code subsets together, so
that neither drowns the other. Other files of pairs may name their subsets as they like.
"""

from collections.abc import Mapping
from typing import Any

from data.measures import weighted_accuracy

CODE = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
MATH = "math-prm"
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "chat_hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "reasoning": (MATH, *CODE),
}


def sections(subsets: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """`accuracy`, `low`, `high` and the `missing` subsets of each section that has any of `subsets`.

    `subsets`: name -> metrics of `pairwise_accuracy`. With all four sections there, also `score`, their mean.
    """
    counts = {name: metrics["n"] for name, metrics in subsets.items() if metrics["n"]}
    if MATH in counts:
        counts[MATH] = sum(counts.get(name, 0) for name in CODE) or counts[MATH]
    found: dict[str, dict[str, Any]] = {}
    for section, names in SECTIONS.items():
        here = [name for name in names if name in counts]
        if here:
            missing = [name for name in names if name not in counts]
            found[section] = weighted_accuracy([subsets[name] for name in here], [counts[name] for name in here]) | {
                "missing": missing
            }
    if len(found) == len(SECTIONS):
        missing = [name for row in found.values() for name in row["missing"]]
        found["score"] = weighted_accuracy(list(found.values()), [1] * len(found)) | {"missing": missing}
    return found
