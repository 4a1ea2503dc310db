"""Keys and teams, without HTTP."""

from pathlib import Path

import pytest
from support.manual_clock import ManualClock

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
    clock, file = ManualClock(), tmp_path / "keys.txt"
    file.write_text("")
    assert status(Keys(TEAMS, str(file)), None) == 401
    file.write_text(f"games {hashed('k')}")
    keys = Keys(TEAMS, str(file), check_s=5, clock=clock)
    file.write_text("")
    clock.now = 6
    assert keys.any
    assert [status(keys, key) for key in ("k", None)] == [401, 401]


def test_a_key_can_be_revoked_while_the_endpoint_runs(tmp_path: Path) -> None:
    clock, file = ManualClock(), tmp_path / "keys.txt"
    file.write_text(f"games {hashed('k')}")
    keys = Keys(TEAMS, str(file), check_s=5, clock=clock)
    file.write_text(f"games {hashed('k')} revoked\nschool {hashed('new')}")
    assert status(keys, "k") == "games"
    clock.now = 6
    assert (status(keys, "k"), status(keys, "new")) == (401, "school")
    file.write_text("games nonsense")
    clock.now = 12
    assert (status(keys, "k"), status(keys, "new")) == (401, "school"), "a file that is being edited changes nothing"


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
