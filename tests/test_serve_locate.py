"""Which policy is served: the newest finished run's last one, a run's, or a folder's; and the error without one."""

import importlib.util
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge
from pydantic import BaseModel
from support.manifests import finish, report

from cluster.settings.load import load
from data.storage import Storage
from serve.__main__ import CONFIG, main
from serve.deploy import PAGE, bound, require_free_port
from serve.locate import Located, locate, locate_all
from serve.settings import ServeSettings


def touch(path: Path, at: float = 1e9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (at, at))


def run(storage: Path, name: str, policies: list[str], finished_at: float | None, promoted: str = "policy") -> Path:
    for policy in policies:
        touch(storage / name / policy / "model" / "config.json")
    if finished_at is not None:
        manifest = storage / name / "report" / "manifest.json"
        finish(Storage(str(storage / name)), "report", report(policy_stage=promoted))
        os.utime(manifest, (finished_at, finished_at))
    return storage / name


def test_the_newest_finished_run(tmp_path: Path) -> None:
    run(tmp_path, "old", ["policy"], 1e9)
    run(tmp_path, "new", ["policy", "bootstrap-1/policy", "bootstrap-2/policy"], 2e9, promoted="bootstrap-1/policy")
    run(tmp_path, "unfinished", ["policy"], None)
    (tmp_path / "a-file").write_text("")
    located = locate("newest", str(tmp_path))
    assert located.name == "new"
    assert located.uri == str(tmp_path / "new" / "bootstrap-1" / "policy" / "model"), "the last round was not promoted"


def test_a_run_or_a_policy_by_name(tmp_path: Path) -> None:
    folder = run(tmp_path, "one", ["policy"], 1e9)
    assert locate(str(folder), "nowhere").uri == str(folder / "policy" / "model")
    assert locate(str(folder / "policy" / "model"), "nowhere").name == "model"


def test_several_models_and_the_predictor_of_the_first_one_s_run(tmp_path: Path) -> None:
    folder = run(tmp_path, "one", ["policy"], 1e9)
    touch(folder / "predictor" / "model" / "config.json")
    other = run(tmp_path, "two", ["policy"], 2e9)
    models = [{"name": "stable", "policy": str(folder), "weight": 3}, {"name": "canary", "policy": "newest"}]
    located, predictor = locate_all(ServeSettings.model_validate({"models": models, "storage": str(tmp_path)}))
    assert [(m.name, m.weight, m.uri) for m in located] == [
        ("stable", 3, str(folder / "policy" / "model")),
        ("canary", 1, str(other / "policy" / "model")),
    ]
    assert predictor == str(folder / "predictor" / "model")
    assert locate_all(ServeSettings(policy=str(other)))[1] is None
    assert locate_all(ServeSettings(policy=str(folder), predictor=None))[1] is None
    with pytest.raises(ValueError, match="no predictor at nowhere"):
        locate_all(ServeSettings(policy=str(other), predictor="nowhere"))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"models": [{"name": "a", "policy": "x"}], "policy": "y"}, "leave them out"),
        ({"models": [{"name": "a", "policy": "x"}, {"name": "a", "policy": "y"}]}, "more than once"),
        ({"models": [{"name": "a", "policy": "x", "weight": 0}]}, "give one a weight"),
        ({"teams": [{"name": "a", "profiles": ["gamin"]}]}, "there are gaming"),
        ({"teams": [{"name": "a"}, {"name": "a"}]}, "more than once"),
        ({"min_replicas": 2}, "raise it"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ServeSettings.model_validate(settings)


def test_no_policy_is_a_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `make demo` first"):
        locate("newest", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"no policy at .*: set policy to"):
        locate(str(tmp_path), "runs")
    with pytest.raises(ValueError, match="has no policy"):
        locate(str(run(tmp_path, "empty", [], 1e9)), "runs")


def test_the_command_prints_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"storage={tmp_path}"]) == 2
    assert "run `make demo` first" in capsys.readouterr().err


def test_a_store_of_feedback_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, "one", ["policy"], 1e9)
    (tmp_path / "file").write_text("in the way")
    assert main([f"policy={folder}", f"feedback.store={tmp_path}/file/store"]) == 2
    assert "set it to a folder or a bucket that the endpoint may write to" in capsys.readouterr().err


def test_a_taken_port_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, "one", ["policy"], 1e9)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} on 127.0.0.1 cannot be used"):
            require_free_port("127.0.0.1", port)
        assert main([f"policy={folder}", f"port={port}"]) == 2
    assert "set port to another" in capsys.readouterr().err


def test_the_shipped_config_lists_every_default(tmp_path: Path) -> None:
    assert load(ServeSettings, CONFIG) == ServeSettings()
    settings = [line.removeprefix("# ") for line in Path(CONFIG).read_text().splitlines() if re.match(r"# \w+: ", line)]
    assert [line.split(":")[0] for line in settings] == list(ServeSettings.model_fields)
    spelled_out = tmp_path / "config.yaml"
    spelled_out.write_text("\n".join(settings))
    assert load(ServeSettings, str(spelled_out)) == ServeSettings()


def least(record: type[BaseModel]) -> dict[str, Any]:
    """Every setting with a least value, at it."""
    bounds = {
        name: bound.ge
        for name, field in record.model_fields.items()
        for bound in field.metadata
        if isinstance(bound, Ge)
    }
    return bounds | {
        name: least(type(field.default))
        for name, field in record.model_fields.items()
        if isinstance(field.default, BaseModel)
    }


def test_what_is_allowed_ray_serve_takes() -> None:
    settings = ServeSettings.model_validate(least(ServeSettings))
    assert settings.max_queued_requests == 1, "0 is for Ray no number of requests"
    bound(settings, [Located("model", "one")], "predictor")


NO_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")


@NO_VLLM
@pytest.mark.case("25-vllm-missing")
@pytest.mark.parametrize(
    "words",
    [
        ["policy=runs/no-such-run"],
        pytest.param(["storage=s3://no-such-bucket"], marks=pytest.mark.case("C15: vllm, before storage is asked")),
        pytest.param(
            ["models=[{name: a, policy: x}, {name: b, policy: y}]"], marks=pytest.mark.case("C15: vllm, two models")
        ),
    ],
)
def test_an_engine_that_is_not_installed_is_said_at_once(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = time.monotonic()
    assert main([*words, "engine.kind=vllm"]) == 2
    assert time.monotonic() - started < 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert "engine.kind is vllm" in line
    assert "pip install vllm" in line
    assert len(line) <= 400


def test_without_keys_only_this_machine_is_served() -> None:
    with pytest.raises(ValueError, match="without keys"):
        ServeSettings(host="0.0.0.0")
    assert ServeSettings(host="0.0.0.0", keys="keys.txt").host == "0.0.0.0"


def test_the_page_asks_nobody_else() -> None:
    page = PAGE.read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page
