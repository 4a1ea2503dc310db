"""Attributes from wherever a client could put them, and what the reply says about it."""

from typing import Any

import pytest
from support.asgi import KEYS_TEXT, USER, Answered, Scripted, app_around, ask

from serve.protocol import ProtocolError
from serve.requested import HEADER, assignments

SCRIPT = Scripted()


def steered(header: str = "", key: str | None = None, **fields: Any) -> Answered:
    app = app_around(SCRIPT.generate, keys_text=KEYS_TEXT if key else "")
    return ask(app, key, headers={HEADER.lower(): header}, messages=[USER], **fields)


@pytest.mark.case("a client that can send no field of ours")
@pytest.mark.parametrize(
    ("fields", "requested", "source"),
    [
        ({"metadata": {"attributes": "humor=4, verbosity=1"}}, {"humor": 4, "verbosity": 1}, "metadata.attributes"),
        ({"header": "humor=4,verbosity=0.5"}, {"humor": 4, "verbosity": 0.5}, HEADER),
        ({"model": "demo@humor=4,verbosity=1"}, {"humor": 4, "verbosity": 1}, "model"),
        ({"model": "demo:gaming@humor=4"}, {"humor": 4}, "model"),
        ({"verbosity": "high"}, {"verbosity": 4}, "verbosity"),
        ({"verbosity": "low"}, {"verbosity": 0}, "verbosity"),
        ({"verbosity": "high", "profile": "gaming"}, {"verbosity": 3}, "verbosity"),
        ({"verbosity": "high", "model": "demo:accessibility"}, {"verbosity": 2}, "verbosity"),
    ],
)
def test_attributes_may_come_in_another_place(fields: dict[str, Any], requested: dict[str, float], source: str) -> None:
    steering = steered(**fields).json["steering"]
    assert steering["requested"] == requested
    assert steering["sources"] == dict.fromkeys(requested, source)
    assert {name: steering["effective"][name] for name in requested} == {n: round(v) for n, v in requested.items()}
    assert SCRIPT.requests[-1].attributes == steering["effective"]


def test_the_body_s_attributes_count_most_and_the_dials_least() -> None:
    steering = steered(
        "humor=2,toxicity=2",
        model="demo@humor=1,toxicity=1,creativity=1,verbosity=1",
        metadata={"attributes": "humor=3"},
        attributes={"humor": 4},
        verbosity="high",
    ).json["steering"]
    assert steering["requested"] == {"creativity": 1, "humor": 4, "toxicity": 2, "verbosity": 1}
    assert steering["sources"] == {"toxicity": HEADER, "creativity": "model", "verbosity": "model"}
    assert "sources" not in steered(attributes={"humor": 4}).json["steering"]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"header": "humor=9"}, HEADER, "0 to 4"),
        ({"header": "humor"}, HEADER, "holds 'humor'; allowed: attributes as in humor=4,verbosity=1"),
        ({"header": "humor=1,humor=2"}, HEADER, "twice"),
        ({"metadata": {"attributes": "humour=1"}}, "metadata.attributes", "did you mean 'humor'"),
        ({"metadata": {"attributes": "humor=much"}}, "metadata.attributes", "'much'"),
        ({"model": "demo@humor=-1"}, "model", "0 to 4"),
        ({"model": "demo:support@toxicity=1"}, "model", "profile 'support' locks it at 0"),
        ({"model": "demo:support", "profile": "gaming"}, "profile", "model names 'support'"),
        ({"attributes": {"humor": 9}, "header": "humor=1"}, "attributes.humor", "0 to 4"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "no attribute of this meaning"),
    ],
)
def test_an_error_names_the_place(fields: dict[str, Any], param: str, reason: str) -> None:
    answered = steered(**fields)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)
    assert reason in answered.json["error"]["message"]


def test_a_dial_that_sets_nothing_asks_for_nothing_at_its_neutral_setting() -> None:
    for setting in ("none", "medium"):
        assert "requested" in steered(reasoning_effort=setting).json["steering"]


def test_a_model_under_a_profile_is_under_the_team_s_rules() -> None:
    assert steered(key="key-all", model="demo:education").json["steering"]["effective"]["humor"] == 1
    assert steered(key="key-games", model="demo:gaming").status == 200
    refused = steered(key="key-games", model="demo:education")
    assert (refused.status, refused.json["error"]["code"]) == (403, "profile_forbidden")
    unknown = steered(model="demo:nobody")
    assert unknown.status == 404
    assert "demo; also with a profile, as demo:gaming" in unknown.json["error"]["message"]


def test_no_text_breaks_the_reading() -> None:
    assert assignments("", "model") == assignments(" , ", "model") == {}
    for text in ("=", "a", "a=1,a=2", "=1", "a=1,b"):
        with pytest.raises(ProtocolError) as caught:
            assignments(text, "model")
        assert (caught.value.status, caught.value.param) == (400, "model")
    for text in ("1e400", "nan", "0x1", "9" * 5000, "\u0661", ""):
        assert isinstance(assignments(f"a={text}", "model")["a"], str), "the schema refuses what is no number"
