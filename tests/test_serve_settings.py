"""Settings of the endpoint that must not contradict each other, or be no address at all."""

import pytest
from pydantic import ValidationError

from serve.__main__ import main
from serve.settings import ServeSettings


@pytest.mark.case("every page of the web drives an endpoint without keys")
def test_all_sites_may_call_only_where_there_are_keys() -> None:
    with pytest.raises(ValidationError, match="any page could use the endpoint: name the sites, or set teams and keys"):
        ServeSettings(cors_origins=("*",))
    assert ServeSettings(cors_origins=("*",), keys="keys.txt").cors_origins == ("*",)
    assert ServeSettings(cors_origins=("https://chat.example", "http://localhost:3000")).cors_origins


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://chat.example/path", "", "null"])
def test_an_origin_is_scheme_and_host(origin: str) -> None:
    with pytest.raises(ValidationError):
        ServeSettings(cors_origins=(origin,), keys="keys.txt")


@pytest.mark.parametrize("path", ["steer", "/steer/", "/", "/a b", "https://x/steer"])
def test_a_root_path_begins_with_a_slash_and_ends_with_none(path: str) -> None:
    with pytest.raises(ValidationError):
        ServeSettings(root_path=path)
    assert ServeSettings(root_path="/steer/two").root_path == "/steer/two"


def test_fewer_ingresses_at_most_than_always_are_an_error() -> None:
    with pytest.raises(ValidationError, match=r"max_replicas is 1, below min_replicas 2: raise it"):
        ServeSettings.model_validate({"ingress": {"min_replicas": 2}})


def test_a_word_that_contradicts_a_default_is_named_as_one_of_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["access_log=false", "host=0.0.0.0", "port=8001", "--plan"])
    assert capsys.readouterr().err.startswith(
        "python -m serve: on the command line: host is '0.0.0.0', but without keys"
    )
