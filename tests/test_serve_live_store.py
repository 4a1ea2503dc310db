"""The store of live records: one that is away or hangs costs no request, and what is old goes."""

import asyncio
import threading
from pathlib import Path

import pytest
from support.asgi import Scripted, app_around
from support.live import NOW_S, Counted, Predictor, live_in, records, sent
from support.manual_clock import ManualClock

from data.storage import Storage, Unwritable
from serve import live as live_module
from serve.live_store import LiveFile, LiveSettings, LiveStore

DAY_S = 86_400


def test_a_storage_that_is_away_costs_no_request_and_gets_each_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_module, "MOST_WAITING", 3)
    predictor, counted, away = Predictor(), Counted(), True
    put = LiveStore.put

    def fails(self: LiveStore, file: LiveFile) -> None:
        put(self, file)  # the file may be there, although its writer heard of no success
        if away:
            raise Unwritable(28, "cannot write: no space left")

    monkeypatch.setattr(LiveStore, "put", fails)
    live = live_in(tmp_path, predictor.score, counted)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def session() -> None:
        nonlocal away
        for _ in range(2):
            for _ in range(2):
                assert (await sent(app, {"score": True})).status == 200
            await live.write()
        assert counted.dropped == ["writing"], "there is room for three"
        away = False
        await live.write()
        assert len(records(tmp_path)) == 2, "the file that was tried before"
        await live.write()

    asyncio.run(session())
    assert len(records(tmp_path)) == 3
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2
    assert "live records were not written" in caplog.text
    assert "no space left" in caplog.text


def test_a_storage_that_hangs_holds_up_no_request_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor, go = Predictor(), threading.Event()
    monkeypatch.setattr(LiveStore, "put", lambda *_: go.wait(20))
    live = live_in(tmp_path, predictor.score)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def session() -> None:
        await sent(app, {"score": True})
        writing = asyncio.create_task(live.write())
        await asyncio.sleep(0)
        for _ in range(3):
            assert (await sent(app, {"score": True})).status == 200
        assert not writing.done()
        await live.aclose()
        assert not writing.done()
        go.set()
        await writing

    monkeypatch.setattr(live_module, "END_S", 0.01)
    asyncio.run(session())
    assert "4 live records are lost: live.store took longer than 0.01 s" in caplog.text


def test_what_waits_is_written_again_and_again_and_at_once_when_it_is_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def until(num: int) -> None:
        async with asyncio.timeout(20):
            while len(records(tmp_path)) < num:
                await asyncio.sleep(0.005)

    async def session() -> None:
        often = asyncio.create_task(live.keep_written(every_s=0.01))
        for num in (1, 2):
            await sent(app, {"score": True})
            await until(num)
        often.cancel()
        monkeypatch.setattr(live_module, "FILE_RECORDS", 2)
        monkeypatch.setattr(live_module, "PAUSE_S", 0.0)
        seldom = asyncio.create_task(live.keep_written(every_s=3600))
        await sent(app, {"score": True})
        await asyncio.sleep(0.05)
        assert len(records(tmp_path)) == 2
        await sent(app, {"score": True})
        await until(4)
        seldom.cancel()

    asyncio.run(session())
    assert len(list(tmp_path.rglob("*.jsonl"))) == 3


def test_old_files_go_and_nothing_else(tmp_path: Path) -> None:
    store, settings = LiveStore(str(tmp_path)), LiveSettings(store=str(tmp_path), retention_days=10)
    ages = (0, 9 * DAY_S, 10 * DAY_S - 1, 10 * DAY_S, 400 * DAY_S)
    kept = {age: LiveFile.of(["{}"], NOW_S - age) for age in ages}
    for file in kept.values():
        store.put(file)
    old = kept[400 * DAY_S].name
    day = old.partition("/")[0]
    foreign = ["notes.txt", f"{day}/notes.jsonl", f"{day}/{old.partition('/')[2]}.gz", f"x/{old}"]
    foreign += [kept[400 * DAY_S].name.replace(f"{day}/", "2026-01-01/"), f"{day}/99999999T999999Z-01234567.jsonl"]
    for name in foreign:
        (Storage(str(tmp_path)) / name).write_bytes(b"not ours")
    (Storage(str(tmp_path)) / f"{old}.0123abcd.tmp").write_bytes(b"half")
    assert store.sweep(settings, NOW_S) == 2
    left = set(Storage(str(tmp_path)).names())
    assert left == {*foreign, *(kept[age].name for age in ages[:3])}
    assert store.sweep(settings, NOW_S) == 0


def test_the_endpoint_removes_what_is_old_also_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    clock.now = NOW_S
    live = live_in(tmp_path, Predictor().score, clock=clock, retention_days=1)
    LiveStore(str(tmp_path)).put(LiveFile.of(["{}"], NOW_S))
    sweep, tried = LiveStore.sweep, 0

    def swept(self: LiveStore, settings: LiveSettings, now_s: float) -> int:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise OSError("away")
        return sweep(self, settings, now_s)

    monkeypatch.setattr(LiveStore, "sweep", swept)

    async def session() -> None:
        task = asyncio.create_task(live.keep_swept(every_s=0.005))
        async with asyncio.timeout(20):
            while tried < 4:
                await asyncio.sleep(0.005)
            assert len(list(tmp_path.rglob("*.jsonl"))) == 1
            clock.now += DAY_S
            while any(tmp_path.rglob("*.jsonl")):
                await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(session())
