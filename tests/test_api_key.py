"""Where the key of an endpoint comes from: each place, and each message with the settings that the section has."""

from pathlib import Path

import pytest

from data.errors import UserError
from data.judge_settings import JudgeSettings
from jobs.benchmarking.settings import BenchmarkEndpoint
from jobs.runner.api_key import api_key


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", " sk-1\n")
    file = tmp_path / "key"
    file.write_text("sk-2\n")
    assert api_key(JudgeSettings(key_variable="A_KEY"), "judge", "its") == "sk-1"
    assert api_key(BenchmarkEndpoint(key_variable="A_KEY"), "benchmark.endpoint", "its") == "sk-1"
    assert api_key(JudgeSettings(key_variable="A_KEY", key_file=str(file)), "judge", "its") == "sk-2"
    assert api_key(JudgeSettings(key_variable=None), "judge", "its") is None
    file.write_text("")
    with pytest.raises(UserError, match=r"is empty; write its key into it \(judge.key_file\)"):
        api_key(JudgeSettings(key_file=str(file)), "judge", "its")


def test_a_missing_key_names_the_settings_that_the_section_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(
        UserError, match=r"A_KEY is not set; put its .* judge.key_variable or a file in judge.key_file;"
    ):
        api_key(JudgeSettings(key_variable="A_KEY"), "judge", "its")
    with pytest.raises(UserError, match=r"A_KEY is not set.* benchmark.endpoint.key_variable; ") as failed:
        api_key(BenchmarkEndpoint(key_variable="A_KEY"), "benchmark.endpoint", "its")
    assert "key_file" not in str(failed.value)
