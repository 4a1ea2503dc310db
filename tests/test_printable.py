"""What a stranger's text looks like in a message."""

import pytest

from data.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("é, 漢字, 🙂", "é, 漢字, 🙂"),
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("turned \u202e round", "turned \\u202e round"),
        ("half \ud83d", "half \\ud83d"),
        ("x" * 81, "x" * 80 + "..."),
    ],
)
def test_a_terminal_has_nothing_to_obey(text: str, shown: str) -> None:
    assert printable(text) == shown
