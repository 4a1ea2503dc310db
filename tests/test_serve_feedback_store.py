"""What lies in the store of feedback, for how long, and that nothing else is ever removed."""

import asyncio
from pathlib import Path

import pytest
from support.asgi import LAB
from support.feedback import NOW_S, feedback_in, files
from support.manual_clock import ManualClock

from data.errors import UserError
from data.storage import Storage
from serve.answer_ids import CHAT, begun_s, day_of, new_id
from serve.feedback_store import FeedbackSettings, FeedbackStore, KeptAnswer, KeptMessage
from serve.settings import ServeSettings

HOUR_S, DAY_S = 3600, 86_400
RATERS = ("0" * 16, "1" * 16)


def answer(begun: float = NOW_S, team: str = "games") -> KeptAnswer:
    return KeptAnswer(
        id=new_id(CHAT, begun),
        team=team,
        model="demo",
        policy="runs/demo",
        attribute_schema=LAB,
        requested={},
        effective=LAB.defaults(),
        system="",
        messages=(KeptMessage(role="user", content="Why?"),),
        choices=("It is.",),
    )


def put(store: FeedbackStore, answer: KeptAnswer, rater: str = RATERS[0], humor: float = 1) -> bool:
    store.put_answer(answer)
    return store.put_rating(answer, 0, {"humor": humor}, rater, NOW_S)


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_what_was_put_is_there_for_its_team_alone(root: str) -> None:
    store, kept = FeedbackStore(root), answer()
    store.require_writable()
    assert Storage(root).names() == []
    assert store.answer("games", kept.id) is None
    store.put_answer(kept)
    assert store.answer("games", kept.id) == kept
    assert store.answer("school", kept.id) is None
    assert store.answer("games", "../x") is None
    for rater, humor in [(RATERS[0], 1.0), (RATERS[0], 2.5), (RATERS[1], 1.0)]:
        assert store.put_rating(kept, 0, {"humor": humor}, rater, NOW_S)
    day = "2026-11-30"
    assert Storage(root).names() == [
        *(f"games/{day}/{kept.id}/0.{rater}.jsonl" for rater in RATERS),
        f"games/_answers/{day}/{kept.id}.json",
    ]
    assert store.delete("school", kept.id) == (0, 0)
    assert store.delete("games", kept.id) == (1, 2)
    assert Storage(root).names() == []


def test_a_rating_of_what_was_deleted_meanwhile_does_not_stay(root: str) -> None:
    store, kept = FeedbackStore(root), answer()
    store.put_answer(kept)
    assert store.delete("games", kept.id) == (1, 0)
    assert not store.put_rating(kept, 0, {"humor": 1}, RATERS[0], NOW_S), "whoever rates had read the text before"
    assert Storage(root).names() == []


def test_old_texts_and_ratings_go_and_nothing_else(root: str) -> None:
    store = FeedbackStore(root)
    settings = FeedbackSettings(store=root, answers_minutes=60, retention_days=10)
    ages = (0, HOUR_S - 1, HOUR_S, 9 * DAY_S, 10 * DAY_S - 1, 10 * DAY_S, 400 * DAY_S)
    kept = {age: answer(NOW_S - age) for age in ages}
    former = answer(NOW_S - 11 * DAY_S, team="former")
    for one in (*kept.values(), former):
        assert put(store, one)
    old, young = kept[400 * DAY_S], kept[0]
    day = day_of(begun_s(old.id))
    foreign = [
        "notes.txt",
        f"games/{day}/notes.jsonl",
        f"games/{day}/{old.id}/notes.jsonl",
        f"games/{day}/{old.id}/0.{RATERS[0]}.jsonl.gz",
        f"games/{day}/{young.id}/0.{RATERS[0]}.jsonl",
        f"games/_answers/{day}/notes.json",
        f"games/_answers/{day}/{young.id}.json",
        f"Games/{day}/{old.id}/0.{RATERS[0]}.jsonl",
        f"games/2020/{old.id}/0.{RATERS[0]}.jsonl",
    ]
    for name in foreign:
        (Storage(root) / name).write_bytes(b"not ours")
    unfinished = [
        f"games/_answers/{day}/{old.id}.json.0123abcd.tmp",
        f"games/{day}/{old.id}/0.{RATERS[1]}.jsonl.0123abcd.tmp",
    ]
    for name in unfinished:
        (Storage(root) / name).write_bytes(b"half")
    assert store.sweep(settings, NOW_S) == (6, 3)
    left = set(Storage(root).names())
    assert left >= set(foreign)
    ours = left - set(foreign)
    assert ours == {
        *(f"games/{day_of(begun_s(kept[age].id))}/{kept[age].id}/0.{RATERS[0]}.jsonl" for age in ages[:5]),
        *(f"games/_answers/{day_of(begun_s(kept[age].id))}/{kept[age].id}.json" for age in ages[:2]),
    }
    assert store.sweep(settings, NOW_S) == (0, 0)
    assert store.delete_all("games") == (2, 5)
    assert set(Storage(root).names()) == set(foreign)


def test_an_empty_or_missing_store_has_nothing_to_remove(root: str) -> None:
    store = FeedbackStore(root)
    assert store.sweep(FeedbackSettings(store=root), NOW_S) == (0, 0)
    assert store.delete_all("games") == (0, 0)
    assert store.delete("games", new_id(CHAT)) == (0, 0)


def test_folders_that_are_empty_go_too(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path))
    kept = answer(1_700_000_000.0)
    assert put(store, kept)
    store.sweep(FeedbackSettings(store=str(tmp_path)), NOW_S)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["games", "games/_answers"]


def test_the_endpoint_removes_what_is_old_at_its_start_and_again(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.now = NOW_S
    feedback = feedback_in(tmp_path, clock, answers_minutes=60, retention_days=1)
    store = FeedbackStore(str(tmp_path))
    assert put(store, answer(NOW_S - 2 * DAY_S))
    assert put(store, answer(NOW_S))

    async def run() -> None:
        task = asyncio.create_task(feedback.keep_swept(every_s=0.01))
        await until(lambda: len(files(tmp_path)) == 2)
        clock.now = NOW_S + 2 * HOUR_S
        await until(lambda: len(files(tmp_path)) == 1)
        clock.now = NOW_S + DAY_S
        await until(lambda: files(tmp_path) == [])
        assert not task.done()
        task.cancel()

    asyncio.run(run())


async def until(what: object) -> None:
    async with asyncio.timeout(20):
        while not what():  # type: ignore[operator]
            await asyncio.sleep(0.01)


def test_a_sweep_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def fails(self: FeedbackStore, settings: FeedbackSettings, now_s: float) -> tuple[int, int]:
        tried.append(now_s)
        raise OSError("away")

    monkeypatch.setattr(FeedbackStore, "sweep", fails)
    feedback = feedback_in(tmp_path)

    async def run() -> None:
        task = asyncio.create_task(feedback.keep_swept(every_s=0.01))
        await until(lambda: len(tried) > 2)
        task.cancel()

    asyncio.run(run())


def test_a_store_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"feedback\.store .*/file/store cannot be used \(Unwritable: .*: set it to"):
        FeedbackStore(str(tmp_path / "file" / "store")).require_writable()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"feedback": {"store": ""}}, "at least 1 character"),
        ({"feedback": {"store": "memory://x"}}, "is gone when the process ends"),
        ({"feedback": {"store": "x", "retention_days": 1, "answers_minutes": 1441}}, "longer than retention_days 1"),
        ({"feedback": {"store": "x"}, "keys": "k", "teams": [{"name": "a"}]}, "no team may give feedback"),
        ({"keys": "k", "teams": [{"name": "a", "feedback": True}]}, r"team a has feedback: true, but feedback\.store"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServeSettings.model_validate(settings)


def test_a_relative_store_is_the_same_folder_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FeedbackSettings(store="here").store == str(tmp_path / "here")
