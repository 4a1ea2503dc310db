"""Credentials in URIs: which are found, what stays, and that no way out of a command shows one."""

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cluster.doctor as doctor
import cluster.submit as submit
import jobs.runner.cli as cli
from cluster.masking import (
    CredentialFound,
    MaskedStream,
    credentials_in,
    masked,
    remember_credentials,
    require_plain_buckets,
    without_credentials,
    without_secrets,
)
from jobs.prepare import STAGE

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://bob:hunter22@host/x", "https://...@host/x"),
        ("s3://AKIA:SE/CR+ET@bucket/x", "s3://...@bucket/x"),
        ("https://ghp_hunter22@github.com/a/b", "https://...@github.com/a/b"),
        ("https://bob:p@hunter22@host/x", "https://...@host/x"),
        ("s3://AKIA%3Ahunter22@bucket/x", "s3://...@bucket/x"),
        ("s3:/AKIA:hunter22@bucket/x", "s3:/...@bucket/x"),
        ("postgresql://:hunter22@host/db", "postgresql://...@host/db"),
        ("zip://a.csv::https://bob:hunter22@host/x.zip", "zip://a.csv::https://...@host/x.zip"),
        ("https://host:8443/x?X-Amz-Algorithm=A&X-Amz-Signature=hunter22", "https://host:8443/x?..."),
        ("https://a.blob.core.windows.net/c/x?sv=1&sig=hunter22%3D", "https://a.blob.core.windows.net/c/x?..."),
        ("https://s.googleapis.com/b/x?GoogleAccessId=hunter22&Expires=1", "https://s.googleapis.com/b/x?..."),
        ("https://host/x?api_key=hunter22", "https://host/x?..."),
        ("https://host/cb#access_token=hunter22", "https://host/cb#..."),
        ("failed with url: /x?token=hunter22 (caused by 1)", "failed with url: /x?... (caused by 1)"),
        ("cannot read https://b:hunter22@h/x; set `storage`", "cannot read https://...@h/x; set `storage`"),
        ("no file at https://h/x?sig=hunter22, or h://k:hunter22@i.", "no file at https://h/x?..., or h://...@i."),
        ("Storage(uri='s3://k:hunter22@b/x')", "Storage(uri='s3://...@b/x')"),
        ('{"a": "s3://k:hunter22@b", "b": "x@y"}', '{"a": "s3://...@b", "b": "x@y"}'),
        ('{"a":"http://h:1","b":"me@home"}', '{"a":"http://h:1","b":"me@home"}'),
    ],
)
def test_a_credential_is_masked_and_the_rest_stays(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown, "masking twice changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/part-?.jsonl",
        "s3://bucket/date=2026-??/x",
        "hf://datasets/nvidia/HelpSteer2@main/train.jsonl.gz",
        "abfss://container@account.dfs.core.windows.net/x",
        "http://127.0.0.1:8265/jobs",
        "http://host:8000/team@example",
        "https://host/x?download=true&name=me",
        "sftp://bob@host/x",
        "write to bob@example.org: 3 of 4",
        "policy.learner.epochs=3 run=a@b",
        "C:/Users/bob/x@y",
        "ray: 4 CPUs {humor:3}@home",
        "",
    ],
)
def test_what_holds_no_credential_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_long_text_is_searched_in_linear_time() -> None:
    def seconds(text: str) -> float:
        started = time.perf_counter()
        masked(text)
        return time.perf_counter() - started

    for piece in ("a://b:", "?a=", "https://a", "@:/", "#?x="):
        assert seconds(piece * 5_000 + "@") < 2, piece


def test_settings_are_found_by_their_path() -> None:
    preset = {
        "storage": "s3://k:hunter22@b",
        "rows": {"sources": [{"uri": "x"}, {"uri": "https://h/x?token=hunter22"}]},
        "seed": 1,
    }
    assert credentials_in(preset) == ["storage", "rows.sources.1.uri"]
    assert credentials_in(without_credentials(preset)) == []


def test_keys_of_a_mapping_are_masked_too() -> None:
    inputs = {"https://bob:hunter22@host/x": "0123", "n": [1, None, ("s3://k:hunter22@b",)]}
    assert without_credentials(inputs) == {"https://...@host/x": "0123", "n": [1, None, ["s3://...@b"]]}
    assert without_secrets(inputs) == without_credentials(inputs)


def test_a_stream_masks_and_is_otherwise_itself() -> None:
    under = io.StringIO()
    stream = MaskedStream(under)
    print("https://bob:hunter22@host/x", 1, file=stream)
    stream.writelines(["s3://k:hunter22@b\n", "end\n"])
    assert under.getvalue() == "https://...@host/x 1\ns3://...@b\nend\n"
    assert stream.isatty() is False


@pytest.mark.case("B13: a library repeats the key without its URI")
def test_what_a_setting_held_is_masked_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.masking._known", set())
    remember_credentials({"a": "https://bob:hunter22@h/x", "b": ["https://h/y?sig=abcdef%3D&sv=1", "s3://plain/x"]})
    under = io.StringIO()
    print('Invalid name "bob:hunter22@h", hunter22, abcdef%3D, x 1 plain', file=MaskedStream(under))
    assert under.getvalue() == 'Invalid name "...@h", ..., ..., x 1 plain\n'


@pytest.mark.parametrize("uri", ["s3://AKIA:hunter22@bucket/x", "S3://a:hunter22@b", "gs://a:hunt/er22@b"])
def test_a_key_before_a_bucket_is_one_sentence(uri: str) -> None:
    with pytest.raises(CredentialFound, match=r"rows.2 has a credential before its bucket, .+://[.]{3}@b") as found:
        require_plain_buckets({"rows": ["s3://bucket:x/y", "https://bob:pw@h", uri]})
    assert "er22" not in str(found.value)
    assert len(str(found.value)) < 400


PRESET = str(ROOT / "jobs/presets/demo.yaml")
SOURCE = "rows.sources=[{name: x, format: messages, uri: 'https://bob:hunter22@127.0.0.1:9/x.jsonl?sig=hunter22'}]"
EVENT = "from cluster.events import *; log_event({0!r}, 'x', url={0!r}); write_events_as('json'); log_event({0!r}, 'x')"


@pytest.mark.case("B13: a job's plan, needs, and errors in its settings")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((SOURCE, "--needs"), 0),
        ((SOURCE, "storage=https://k:hunter22@b", "--needs"), 2),
        ((SOURCE, "storage=memory://k:hunter22@b", "--plan"), 2),
        (("storage=s3://k:hunter22@b", "--plan"), 2),
        (("seed=https://k:hunter22@b",), 2),
        (("https://k:hunter22@b",), 2),
        (("--https://k:hunter22@b",), 2),
    ],
)
def test_no_line_of_a_job_shows_it(
    words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.masking._known", set())
    monkeypatch.setattr(sys, "argv", ["prepare", PRESET, *words])
    with pytest.raises(SystemExit, match=str(code)) if code else contextlib.nullcontext():
        cli.main("", [STAGE])
    out, err = capsys.readouterr()
    assert "hunter22" not in out + err
    assert "..." in out + err
    if words == (SOURCE, "--needs"):
        assert json.loads(out)["credentials"] == ["rows.sources.0.uri"]


@pytest.mark.case("B13: a traceback and an event")
@pytest.mark.parametrize("code", ["open({!r})", "raise KeyError({!r})", EVENT])
def test_no_traceback_and_no_event_shows_it(code: str) -> None:
    command = f"from cluster.masking import mask_streams; mask_streams(); {code.format('s3://k:hunter22@b/x')}"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "s3://...@b/x" in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == (code != EVENT)
    assert "hunter22" not in done.stdout + done.stderr


@pytest.mark.case("B13: cluster.submit and cluster.doctor refuse it")
@pytest.mark.parametrize("main", [submit.main, doctor.main])
@pytest.mark.parametrize("word", ["storage=s3://k:hunter22@b", SOURCE, "base.model=https://hunter22@host/m"])
def test_a_word_with_a_credential_is_refused_before_anything_else(
    main: Callable[[list[str]], int], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [PRESET] if main is doctor.main else ["prepare", PRESET]
    assert main([*first, word]) == 2
    out, err = capsys.readouterr()
    assert f"{word.partition('=')[0]} has a credential in its URI" in err
    assert out == ""
    assert "hunter22" not in err


def test_a_preset_with_a_credential_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(f"extends: {PRESET}\nbase: {{texts: 'https://host/x?token=hunter22', pretrain: null}}\n")
    assert submit.main(["prepare", str(preset), "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert "base.texts has a credential in its URI" in err
    assert out == ""
    assert "hunter22" not in err
