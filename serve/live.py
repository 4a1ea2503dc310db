"""Requested and measured values of answers in production become records, beside the event loop that answers.

No request waits for it, and none fails of it: an answer is rated in the background, and records wait in memory until
they are written. There is room for a fixed number of both; what finds none is dropped, and counted. Knows no HTTP and
no Ray; the files are in `serve.live_store`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from data.live_records import LiveRecord
from data.uris import shown_uri
from serve.admission import AdmittedRequest
from serve.answering import Score, gaps
from serve.auth import Team
from serve.dated_files import cause
from serve.live_store import LiveFile, LiveSettings, LiveStore
from serve.protocol import ProtocolError
from serve.telemetry import Telemetry

logger = logging.getLogger("ray.serve")

WRITE_S = 60.0
"""How often records are written: a file each. kill -9 loses those of the time since."""
FILE_RECORDS = 1000
"""So many are written earlier."""
PAUSE_S = 1.0
"""At least, between two files."""
MOST_WAITING = 10_000
"""Records that wait for a storage that is slow or away, some five million bytes."""
MOST_RATING = 8
"""Answers that are rated in the background at the same time: callers who ask for a rating have the predictor's rest."""
SWEEP_S = 3600.0
END_S = 10.0
"""How long an ingress that ends waits for the last file."""


@dataclass(frozen=True)
class LiveAnswer:
    """A whole answer that its caller has, or is about to have."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    measured: Mapping[str, float] | None
    """None = its caller asked for no rating."""


class Live:
    """Of one ingress; several write to the same store."""

    def __init__(
        self,
        store: LiveStore,
        settings: LiveSettings,
        score: Score,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ):
        self._store, self._settings, self._score, self._telemetry = store, settings, score, telemetry
        self._clock, self._draw = clock, draw
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="live")  # one writes, one removes
        self._rating: set[asyncio.Task[None]] = set()
        self._waiting: list[tuple[float, str]] = []
        self._file: LiveFile | None = None
        self._many = asyncio.Event()
        self._writing = asyncio.Lock()

    @classmethod
    def of(cls, settings: LiveSettings, score: Score, telemetry: Telemetry) -> "Live | None":
        """None if it is off."""
        return None if settings.store is None else cls(LiveStore(settings.store), settings, score, telemetry)

    def works(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What it does all the time, by what a message calls it."""
        return {"writing live records": self.keep_written(), "removing old live records": self.keep_swept()}

    def take(self, team: Team, accepted: AdmittedRequest, answer: LiveAnswer) -> None:
        """Make a record of a reply's first answer, if it is rated or drawn to be; returns at once, raises nothing.

        Raw prompts have no attributes, and an answer that may be a call of a tool is not rated.
        """
        generation = accepted.generations[0]
        sampled = self._draw() < self._settings.share
        if generation.prompt is not None or generation.tool_chat is not None or not (sampled or answer.measured):
            return
        if answer.measured is not None:
            self._keep(team, accepted, answer, answer.measured, sampled)
        elif len(self._rating) >= MOST_RATING:
            self._telemetry.live_dropped("rating")
        else:
            task = asyncio.create_task(self._rate(team, accepted, answer))
            self._rating.add(task)
            task.add_done_callback(self._rating.discard)

    async def _rate(self, team: Team, accepted: AdmittedRequest, answer: LiveAnswer) -> None:
        generation, model = accepted.generations[0], accepted.model
        try:
            values = await self._score(generation, answer.text)
        except ProtocolError:  # the predictor is busy, slow or away; the ingress has logged which
            self._telemetry.live_dropped("rating")
            return
        measured = model.measured(values, (generation.begun or "") + answer.text)
        self._telemetry.gaps(model.name, gaps(accepted.effective, measured))
        self._keep(team, accepted, answer, measured, sampled=True)

    def _keep(
        self,
        team: Team,
        accepted: AdmittedRequest,
        answer: LiveAnswer,
        measured: Mapping[str, float],
        sampled: bool,
    ) -> None:
        if not measured:
            return  # an empty answer has no values
        if len(self._waiting) >= MOST_WAITING:
            self._telemetry.live_dropped("writing")
            return
        now_s = self._clock()
        self._waiting.append((now_s, live_record(now_s, team, accepted, answer, measured, sampled).model_dump_json()))
        if len(self._waiting) >= FILE_RECORDS:
            self._many.set()

    async def keep_written(self, every_s: float = WRITE_S) -> None:
        """Writes what waits every `every_s`, or as soon as it is much."""
        while True:
            try:
                await asyncio.wait_for(self._many.wait(), every_s)
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(PAUSE_S)  # also where a storage is away
            await self.write()

    async def write(self) -> None:
        """Writes what waits; what the storage does not take waits for the next time. Raises nothing."""
        async with self._writing:
            if self._file is None and self._waiting:
                self._file = LiveFile.of([line for _, line in self._waiting], self._waiting[0][0])
            if self._file is None:
                return
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._store.put, self._file)
            except Exception as error:  # each storage has its own
                logger.error("live records were not written, and wait for the next time: %s", cause(error))
                return
            del self._waiting[: len(self._file.lines)]
            self._file = None
            if len(self._waiting) < FILE_RECORDS:
                self._many.clear()

    async def keep_swept(self, every_s: float = SWEEP_S) -> None:
        """Removes what is kept long enough, now and every `every_s`."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._threads, self._store.sweep, self._settings, self._clock())
            except Exception as error:  # each storage has its own; the next round tries again
                logger.error("old live records were not removed: %s", cause(error))
            await asyncio.sleep(every_s)

    async def aclose(self) -> None:
        """Rates and writes what waits, before the ingress ends."""

        async def end() -> None:
            if self._rating:
                await asyncio.wait(self._rating)
            await self.write()

        try:
            await asyncio.wait_for(end(), END_S)
        except TimeoutError:
            logger.error("%d live records are lost: live.store took longer than %g s", len(self._waiting), END_S)


def live_record(
    now_s: float,
    team: Team,
    accepted: AdmittedRequest,
    answer: LiveAnswer,
    measured: Mapping[str, float],
    sampled: bool,
) -> LiveRecord:
    """What is kept of an answer: no text, and no id that leads to one."""
    return LiveRecord(
        time=datetime.fromtimestamp(int(now_s), UTC),
        team=team.name,
        model=accepted.model.name,
        policy=shown_uri(accepted.model.info.policy),
        profile=accepted.profile,
        scales={a.name: (a.low, a.high) for a in accepted.model.schema.attributes},
        requested=dict(accepted.requested),
        effective=dict(accepted.effective),
        measured=dict(measured),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        sampled=sampled,
        best_of=len(accepted.generations) if accepted.best_of else 0,
        guidance=accepted.generations[0].sampling.guidance,
    )
