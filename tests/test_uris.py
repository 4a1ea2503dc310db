"""URIs that cannot be are one sentence: in every setting that takes one, and wherever one is opened."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from actors.modeling.model_folder import local_folder
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.errors import UserError, is_user_error
from data.lines import files_of
from data.storage import Storage
from data.uris import _Remote, checked_uri, kept_uri, require_installed, shown_uri
from jobs.export import Export
from jobs.runner.preset import Preset
from serve.settings import ServeSettings

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
CONFIG = str(Path(__file__).parent.parent / "serve" / "config.yaml")
NOT_MEANT = {
    "foo://bucket/x": "'foo', which is not known",
    "S3://bucket/x": "write s3://, in small letters",
    "Memory://x": "write memory://, in small letters",
    "s3:/bucket/x": "write s3://bucket/x, or ./ before a folder of that name",
    "s3:bucket/x": "write s3://bucket/x",
    "gs:/bucket": "write gs://bucket",
    "file:/tmp/x": "write /tmp/x",
    "hf:datasets/a/b": "write hf://datasets/a/b",
    "s3://": "names no bucket",
    "hf:///a": "names no bucket",
    "file://tmp/x": "no absolute path; write file:///folder",
    "a\0b": "null character",
    "zip://a.csv::foo://b": "'foo', which is not known",
    "://x": "'', which is not known",
}


@pytest.mark.case("21-protocols")
@pytest.mark.case("22-storage-nowhere")
@pytest.mark.parametrize(("uri", "said"), NOT_MEANT.items())
def test_a_uri_that_is_not_meant_is_one_sentence_everywhere(
    uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for open_it in (checked_uri, kept_uri, Storage, files_of):
        with pytest.raises(UserError) as caught:
            open_it(uri)
        assert said in str(caught.value)
        assert len(str(caught.value)) <= 400
    assert os.listdir() == [], "no folder `s3:` in the working directory"


@pytest.mark.case("21-protocols")
@pytest.mark.parametrize(
    ("uri", "package"),
    [("gs://bucket/x", "gcsfs"), ("gcs://bucket/x", "gcsfs"), ("abfs://bucket/x", "adlfs"), ("az://bucket/x", "adlfs")],
)
def test_a_protocol_without_its_package_names_the_line_to_install(uri: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        said = f"{uri} needs a package that is not installed here: `pip install {package}` on every machine"
        for open_it in (require_installed, lambda uri: Storage(uri).exists(), files_of):
            with pytest.raises(UserError, match=said):
                open_it(uri)
    else:
        require_installed(uri)


@pytest.mark.case("22-storage-nowhere")
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("memory://runs", "is gone when the process ends"),
        ("https://host/runs", "is no place to write to"),
        ("zip://runs::s3://bucket/x.zip", "is no place to write to"),
        ("github://owner:name@main/runs", "is no place to write to"),
    ],
)
def test_storage_outlasts_the_process(uri: str, said: str) -> None:
    for record, path, overrides in (
        (Preset, DEMO, [f'storage="{uri}"']),
        (Export, DEMO, ["what=rows", f'to="{uri}"']),
    ):
        with pytest.raises(SettingsError, match=said):
            load(record, path, overrides)
    assert checked_uri(uri) == uri, "to read it is another thing"


@pytest.mark.case("21-protocols")
@pytest.mark.parametrize(
    "override",
    [
        "rows.sources=[{name: x, format: messages, uri: 'S3://a/b'}]",
        "storage='S3://a/b'",
        "base={model: 'S3://a/b', pretrain: null}",
        "base.texts='S3://a/b'",
        "predictor.backbone='S3://a/b'",
        "predictor.pairs=[{name: x, uri: 'S3://a/b'}]",
        "benchmarks.judged=[{name: x, uri: 'S3://a/b'}]",
    ],
)
def test_every_setting_of_a_run_that_takes_a_uri_checks_it(override: str) -> None:
    with pytest.raises(SettingsError, match=r"S3://a/b has the protocol 'S3', which is not known"):
        load(Preset, DEMO, [override])


@pytest.mark.case("21-protocols")
@pytest.mark.parametrize("name", ["policy", "storage", "predictor", "keys"])
def test_every_setting_of_the_endpoint_that_takes_a_uri_checks_it(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} on the command line: S3://a/b has the protocol 'S3'"):
        load(ServeSettings, CONFIG, [f"{name}='S3://a/b'"])


@pytest.mark.parametrize(
    "uri", ["runs", "/a/b", "~/x", "./s3:/x", "data:v1", "a::b", "s3://b/x", "hf://datasets/a/b@main/x.jsonl", "a=b"]
)
def test_what_can_be_stays_as_it_is(uri: str) -> None:
    assert checked_uri(uri) == uri
    assert kept_uri(uri) == uri


def test_a_file_uri_is_the_path(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/run")
    assert storage == Storage(str(tmp_path / "run"))
    (storage / "x").write_bytes(b"1")
    assert (tmp_path / "run" / "x").read_bytes() == b"1"


def test_a_model_at_a_file_uri_is_read_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_folder(f"file://{tmp_path}") == str(tmp_path)
    assert (tmp_path / "config.json").exists(), "it was moved into the cache once"


@pytest.mark.case("C14: :: in a name")
def test_two_colons_in_a_path_are_part_of_a_name(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "a::b" / "x::y.json"))
    storage.write_json({"x": 1})
    assert storage.read_json() == {"x": 1}
    assert (tmp_path / "a::b" / "x::y.json").exists()
    assert Storage(str(tmp_path / "a::b")).names() == ["x::y.json"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://bob:pw@host/x", "https://...@host/x"),
        ("https://token@host/x", "https://...@host/x"),
        ("gs://bob:p/w@bucket/x", "gs://...@bucket/x"),
        ("hf://datasets/a/b@main/x", "hf://datasets/a/b@main/x"),
        ("abfss://container@account/x", "abfss://container@account/x"),
        ("s3://b/\x1b]0;x", "s3://b/\\x1b]0;x"),
        (f"s3://b/{'a' * 99}/part-?.parquet", f"s3://b/{'a' * 38}...{'a' * 37}/part-?.parquet"),
        (f"https://h/x?sig={'a' * 99}b", f"https://h/x?sig={'a' * 84}..."),
    ],
)
def test_a_message_shows_no_credential_and_no_escape(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


class ConnectError(Exception):
    """As httpx2 raises it: no OSError."""


ConnectError.__module__ = "httpx2"


class NoNetwork(LocalFileSystem):
    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        raise ConnectError("[Errno -2] Name or service not known")

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        raise FileNotFoundError(path)


@pytest.mark.case("21-protocols")
def test_a_server_that_cannot_be_reached_is_one_sentence_with_the_uri() -> None:
    fs: Any = _Remote(NoNetwork(), "hf://datasets/a/b/x.jsonl")
    said = r"cannot reach hf://datasets/a/b/x.jsonl \(\[Errno -2\] Name or service not known\); check the address"
    with pytest.raises(UserError, match=said):
        fs.info("x")
    with pytest.raises(FileNotFoundError):
        fs.ls("x")
    assert fs.protocol == ("file", "local")
    assert pickle.loads(pickle.dumps(fs)).protocol == fs.protocol
    assert is_user_error(ConnectError())
