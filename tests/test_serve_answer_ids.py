"""Ids of answers have their time in them, and nothing that is none is taken for one."""

import time

import pytest

from serve.answer_ids import CHAT, RESPONSE, begun_s, day_of, is_id, new_id


def test_an_id_tells_when_its_answer_was_begun() -> None:
    id = new_id(CHAT, 1_796_000_000.1234)
    assert begun_s(id) == 1_796_000_000.123
    assert day_of(begun_s(id)) == "2026-11-30"
    assert abs(begun_s(new_id(RESPONSE)) - time.time()) < 60


def test_no_two_ids_are_alike() -> None:
    ids = {new_id(CHAT, 5.0) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(map(is_id, ids))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chatcmpl-",
        "../../etc/passwd",
        f"chatcmpl-{'0' * 31}",
        f"chatcmpl-{'0' * 31}/",
        f"chatcmpl-{'0' * 32}\n",
        f"cmpl-{'0' * 32}",
        f"chatcmpl-{'F' * 32}",
        pytest.param(f"chatcmpl-{'f' * 32}", id="year 10889"),
    ],
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


def test_the_last_time_that_an_id_can_have_is_a_day() -> None:
    assert day_of(begun_s(f"{RESPONSE}0{'f' * 31}")) == "2527-06-23"
