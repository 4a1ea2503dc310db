"""How common each combination of values is in the synthetic world."""

import pytest

from data.lab import Lab, LabSettings
from data.lab_mix import DECORATIONS


def test_plain_answers_are_as_common_as_asked_and_vary_in_all_else() -> None:
    found = [v for _, i in Lab(LabSettings(num_rows=2000, plain_share=0.25)).rows_and_intended() for v in i]
    plain = [v for v in found if not v["creativity"] and not v["humor"] and not v["toxicity"]]
    assert 0.22 < len(plain) / len(found) < 0.30
    assert {(v["helpfulness"], v["verbosity"]) for v in plain} == {(h, v) for h in range(5) for v in range(5)}
    every = [v for _, i in Lab(LabSettings(num_rows=50, plain_share=1)).rows_and_intended() for v in i]
    assert not any(v["creativity"] or v["humor"] or v["toxicity"] for v in every)


def test_answers_with_one_decoration_are_as_common_as_asked_beside_plain_ones() -> None:
    settings = LabSettings(num_rows=2000, plain_share=0.25, single_share=0.35)
    found = [v for _, i in Lab(settings).rows_and_intended() for v in i]
    decorations = [sum(v[name] > 0 for name in DECORATIONS) for v in found]
    assert 0.24 < decorations.count(0) / len(found) < 0.29
    assert 0.37 < decorations.count(1) / len(found) < 0.46
    alone = {name: sum(v[name] == 4 for v, n in zip(found, decorations, strict=True) if n == 1) for name in DECORATIONS}
    assert min(alone.values()) > 0.02 * len(found), "the best jokes alone, and so on"


def test_shares_of_answers_are_shares() -> None:
    with pytest.raises(ValueError, match=r"plain_share 0.7 and single_share 0.5 are more than all answers"):
        LabSettings(plain_share=0.7, single_share=0.5)
