"""What a node tries by itself: may it read the model? Against a hub of our own, without Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from support.hub_server import HubServer

from cluster.checks import findings
from cluster.needs import Needs
from cluster.nodes import NodeProbe, Report, examine, of_alive, write_probe

MODEL = "some/gated-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in (MODEL, "some/open-model"):
        (tmp_path / "hub" / name).mkdir(parents=True)
        (tmp_path / "hub" / name / "config.json").write_text("{}")
    (tmp_path / "hub" / "some" / "empty").mkdir()
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(tmp_path / "hub", {MODEL: "good"}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def errors(model: str) -> dict[str, str]:
    return examine(NodeProbe("", {"base.model": model}, "token"), "10.0.0.1", {}, []).errors


@pytest.mark.parametrize("token", ["", "another"])
def test_a_gated_model_without_access_fails_though_its_description_is_open(
    token: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = errors(MODEL)["base.model"]
    whose = "the HF_TOKEN of this node has no access" if token else "this node has no HF_TOKEN"
    assert said == f"{MODEL} is gated and {whose}; ask for access on the model's page, and set HF_TOKEN on every node"


def test_who_has_access_passes(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors("some/open-model") == {}
    monkeypatch.setenv("HF_TOKEN", "good")
    assert errors(MODEL) == {}
    assert not hub.gets, "the check reads no file"


@pytest.mark.parametrize("model", ["some/nothing", "some/empty"])
def test_what_is_no_model_fails(model: str, hub: HubServer) -> None:
    assert "404" in errors(model)["base.model"] or "not found" in errors(model)["base.model"].lower()


def test_the_table_names_the_node_without_the_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Needs("demo", "", (), {}, {"base.model": MODEL})
    probe = NodeProbe("", needs.models, "token")
    without = examine(probe, "10.0.0.2", {}, [])
    monkeypatch.setenv("HF_TOKEN", "good")
    reports = [examine(probe, "10.0.0.1", {}, []), without]
    [found] = [f for f in findings(reports, needs, [], False) if f.what.startswith("base.model")]
    assert not found.good
    assert found.found.startswith(f"10.0.0.2: {MODEL} is gated and this node has no HF_TOKEN")
    assert "set HF_TOKEN on every node" in found.remedy


def test_a_probe_is_written_though_another_job_removes_the_empty_folder(tmp_path: Path) -> None:
    class Removed(LocalFileSystem):  # type: ignore[misc]
        cachable = False
        times = 3

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            super().makedirs(path, exist_ok=exist_ok)
            if self.times:
                self.times -= 1
                os.rmdir(path)

    fs, folder = Removed(), f"{tmp_path}/probes"
    write_probe(fs, folder, f"{folder}/mine")
    assert fs.times == 0
    assert Path(folder, "mine").read_bytes()
    with pytest.raises(FileNotFoundError):
        write_probe(fs, folder, f"{folder}/nowhere/mine")


@pytest.mark.case("a job starts right after the loss of a node")
def test_a_node_that_is_lost_while_it_is_asked_stops_no_job() -> None:
    lost = Report("10.0.0.2", errors={"answer": "the node does not exist any more"})
    stays = Report("10.0.0.1", errors={"port 10.0.0.2:7000": "Connection refused", "port 10.0.0.3:7000": "timed out"})
    addresses = {"a": ("10.0.0.1", 7000), "b": ("10.0.0.2", 7000), "c": ("10.0.0.3", 7000)}
    silent = Report("10.0.0.3", errors={"answer": "no answer within 120 s"})
    found = of_alive({"a": stays, "b": lost, "c": silent}, addresses, {"a", "c"})
    assert [(report.node, report.errors) for report in found] == [
        ("10.0.0.1", {"port 10.0.0.3:7000": "timed out"}),
        ("10.0.0.3", {"answer": "no answer within 120 s"}),
    ]


@pytest.mark.case("two nodes of one host examine the storage at the same time")
def test_nodes_of_one_host_do_not_remove_each_other_s_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = NodeProbe(str(tmp_path), {}, "token", shared=False)
    removed = LocalFileSystem.rm

    def beside_another(fs: LocalFileSystem, path: str, **options: object) -> None:
        monkeypatch.setattr(LocalFileSystem, "rm", removed)
        assert examine(probe, "10.0.0.1", {}, []).errors == {}
        removed(fs, path, **options)

    monkeypatch.setattr(LocalFileSystem, "rm", beside_another)
    assert examine(probe, "10.0.0.1", {}, []).errors == {}
