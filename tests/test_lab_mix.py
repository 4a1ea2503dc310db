"""How common each combination of values is in the synthetic world."""

from data.lab import Lab, LabSettings


def test_plain_answers_are_as_common_as_asked_and_vary_in_all_else() -> None:
    found = [v for _, i in Lab(LabSettings(num_rows=2000, plain_share=0.25)).rows_and_intended() for v in i]
    plain = [v for v in found if not v["creativity"] and not v["humor"] and not v["toxicity"]]
    assert 0.22 < len(plain) / len(found) < 0.30
    assert {(v["helpfulness"], v["verbosity"]) for v in plain} == {(h, v) for h in range(5) for v in range(5)}
    every = [v for _, i in Lab(LabSettings(num_rows=50, plain_share=1)).rows_and_intended() for v in i]
    assert not any(v["creativity"] or v["humor"] or v["toxicity"] for v in every)
