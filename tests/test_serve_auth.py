"""Keys and teams, without HTTP."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from data.errors import UserError
from data.storage import Storage
from serve.auth import EVERYONE, Keys, Team, hashed, new_key, read_keys
from serve.keys import main
from serve.protocol import ProtocolError

TEAMS = [Team(name="games"), Team(name="school")]


def status(keys: Keys, key: str | None) -> int | str:
    try:
        return keys.team_of(None if key is None else f"Bearer {key}").name
    except ProtocolError as problem:
        return problem.status


def test_a_key_is_its_team_s_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\ngames {hashed(key)}  # Ada's\nschool {hashed(other)} revoked\n\n")
    keys = Keys(TEAMS, str(file))
    assert key not in file.read_text()
    assert [status(keys, k) for k in (key, other, key[:-1], key + "x", "", None)] == ["games", 401, 401, 401, 401, 401]


def test_no_keys_at_all_lets_everyone_in() -> None:
    keys = Keys([], None)
    assert not keys.any
    assert keys.team_of(None) == EVERYONE


def test_when_all_keys_are_revoked_nobody_comes_in() -> None:
    keys = Keys(TEAMS, None, f"games {hashed('k')} revoked")
    assert keys.any
    assert status(keys, "k") == 401


def test_a_keys_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("")
    assert status(Keys(TEAMS, str(file)), None) == 401
    file.write_text(f"games {hashed('k')}")
    keys = Keys(TEAMS, str(file))
    file.write_text("")
    keys.read_again()
    assert keys.any
    assert [status(keys, key) for key in ("k", None)] == [401, 401]


def test_a_key_can_be_revoked_while_the_endpoint_runs(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"games {hashed('k')}")
    keys = Keys(TEAMS, str(file))
    file.write_text(f"games {hashed('k')} revoked\nschool {hashed('new')}")
    assert status(keys, "k") == "games"
    asyncio.run(kept_fresh_until(keys, lambda: status(keys, "new") == "school"))
    assert status(keys, "k") == 401
    file.write_text("games nonsense")
    keys.read_again()
    assert (status(keys, "k"), status(keys, "new")) == (401, "school"), "a file that is being edited changes nothing"


async def kept_fresh_until(keys: Keys, over: Callable[[], bool]) -> None:
    reading = asyncio.create_task(keys.keep_fresh(0.01))
    for _ in range(500):
        if over():
            break
        await asyncio.sleep(0.01)
    assert not reading.done()
    reading.cancel()
    assert over()


class Failing:
    """A storage that fails or is slow, as a keys file's URI."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, content: str):
        self.content, self.reads = content, 0
        self.problem: Exception | None = None
        self.wait_s = 0.0
        monkeypatch.setattr(Storage, "read_text", lambda _: self.read())

    def read(self) -> str:
        self.reads += 1
        time.sleep(self.wait_s)
        if self.problem:
            raise self.problem
        return self.content


PROBLEMS = [
    pytest.param(EndpointConnectionError(endpoint_url="http://s3"), marks=pytest.mark.case("B13: S3 is away")),
    pytest.param(NoCredentialsError(), marks=pytest.mark.case("B13: no credentials for the keys")),
    pytest.param(
        UnicodeDecodeError("utf-8", b"\xe4", 0, 1, "invalid"), marks=pytest.mark.case("B13: a keys file in Latin-1")
    ),
    pytest.param(PermissionError("denied"), marks=pytest.mark.case("B13: a keys file of somebody else")),
    pytest.param(ImportError("Install gcsfs"), marks=pytest.mark.case("B13: a storage that is not installed")),
]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_storage_that_fails_is_a_sentence_and_the_old_keys_stay(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Failing(monkeypatch, f"games {hashed('k')}")
    keys = Keys(TEAMS, "s3://bucket/keys.txt")
    storage.problem = problem
    asyncio.run(kept_fresh_until(keys, lambda: storage.reads > 2))
    assert status(keys, "k") == "games"
    storage.problem, storage.content = None, ""
    asyncio.run(kept_fresh_until(keys, lambda: status(keys, "k") == 401))
    storage.problem = problem
    with pytest.raises(UserError, match="cannot be read") as refused:
        Keys(TEAMS, "s3://bucket/keys.txt")
    assert len(str(refused.value)) <= 400


@pytest.mark.case("B13: keys are read off the loop")
def test_a_slow_storage_keeps_no_request_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Failing(monkeypatch, f"games {hashed('k')}")
    keys = Keys(TEAMS, "s3://bucket/keys.txt")
    storage.wait_s = 0.3

    async def go() -> float:
        reading, longest = asyncio.create_task(keys.keep_fresh(0.01)), 0.0
        while storage.reads < 3:
            started = time.monotonic()
            await asyncio.sleep(0.01)
            assert status(keys, "k") == "games"
            longest = max(longest, time.monotonic() - started)
        reading.cancel()
        return longest

    assert asyncio.run(go()) < 0.2


@pytest.mark.parametrize(
    "line", ["games", "games abc", f"games {'0' * 64} revokd", f"games {'g' * 64}", f"nobody {'0' * 64}"]
)
def test_a_wrong_line_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"keys\.txt, line 2"):
        read_keys(f"# first\n{line}", {t.name: t for t in TEAMS}, "keys.txt")


def test_a_missing_file_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Keys(TEAMS, "/nowhere/keys.txt")


def test_the_command_makes_a_key_that_opens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["games"]) == 0
    printed = capsys.readouterr()
    key = printed.err.split("key, shown only now:")[1].split()[0]
    assert status(Keys(TEAMS, None, printed.out), key) == "games"
    assert key not in printed.out
