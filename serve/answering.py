"""The answers to one admitted request: its jobs side by side, rated if that was asked for, the nearest chosen if several compete.

Knows no HTTP: it is given a way to generate and a way to rate.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from data.attributes import AttributeSchema
from serve.admission import Admitted
from serve.protocol import Candidate, Usage
from serve.reply import Answer, usage
from serve.request import Delta, Event, Failed, Job, Started

Generate = Callable[[str, Job], AsyncGenerator[Event, None]]
"""Runs a job on the model of a name; closing the generator cancels it."""
Score = Callable[[Job, str], Awaitable[dict[str, float]]]
"""What the predictor says of an answer to a job: attribute -> value."""


class Answers:
    """Started jobs. Whoever makes one closes it."""

    def __init__(self, admitted: Admitted, generate: Generate, score: Score | None):
        self._admitted, self._score = admitted, score
        self._events = [generate(admitted.model.name, job) for job in admitted.jobs]
        self._texts = [""] * len(self._events)
        self._finished: dict[int, Delta] = {}
        self._counts = [0] * len(self._events)
        self.prompt_tokens = 0

    async def start(self) -> None:
        """Returns when every job has a slot or waits for one; raises WireProblem if one was refused."""
        for first in await asyncio.gather(*(anext(events) for events in self._events)):
            if isinstance(first, Failed):
                raise first.problem()
            assert isinstance(first, Started), f"a job began with {first}"
            self.prompt_tokens = first.prompt_tokens

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index of the answer, what is new), as it comes; raises WireProblem if a job fails."""
        async with aclosing(_merged(self._events)) as merged:
            async for index, event in merged:
                if isinstance(event, Failed):
                    raise event.problem()
                if isinstance(event, Delta):
                    self._texts[index] += event.text
                    self._counts[index] = event.completion_tokens
                    if event.finish is not None:
                        self._finished[index] = event
                    yield index, event

    async def whole(self) -> dict[str, Any]:
        """The reply to a request without stream."""
        async for _ in self.deltas():
            pass
        answers = await asyncio.gather(*(self._answer(index) for index in range(len(self._events))))
        reply, candidates = self._admitted.reply, None
        if self._admitted.asked.best_of is not None:
            answers, candidates = nearest(answers, self._admitted.model.schema, self._admitted.jobs[0].attributes)
        return reply.whole(answers, self.used, candidates)

    async def measured(self) -> dict[str, float]:
        """What the predictor says of the first answer, which is whole."""
        assert self._score is not None
        return await self._score(self._admitted.jobs[0], self._texts[0])

    @property
    def completion_tokens(self) -> int:
        return sum(self._counts)

    @property
    def used(self) -> Usage:
        """As OpenAI counts: the prompt once, all answers."""
        return usage(self.prompt_tokens, self.completion_tokens)

    async def aclose(self) -> None:
        """Frees the slots of whatever still runs."""
        await asyncio.gather(*(events.aclose() for events in self._events), return_exceptions=True)

    async def _answer(self, index: int) -> Answer:
        last = self._finished[index]
        assert last.finish is not None
        measured = None
        if self._admitted.measures:
            assert self._score is not None, "admission refuses to measure where there is no predictor"
            measured = await self._score(self._admitted.jobs[index], self._texts[index])
        return Answer(self._texts[index], last.finish, last.completion_tokens, measured)


def nearest(
    answers: Sequence[Answer], schema: AttributeSchema, asked: Mapping[str, int]
) -> tuple[list[Answer], list[Candidate]]:
    """The answer whose measured attributes are nearest to what was asked for, alone, and what it was chosen from."""
    distances = [distance(schema, asked, answer.measured or {}) for answer in answers]
    best = min(range(len(answers)), key=distances.__getitem__)
    return [answers[best]], [
        Candidate(measured=answer.measured or {}, distance=far, chosen=i == best)
        for i, (answer, far) in enumerate(zip(answers, distances, strict=True))
    ]


def distance(schema: AttributeSchema, asked: Mapping[str, int], measured: Mapping[str, float]) -> float:
    """Mean over the attributes of |measured - asked| / range."""
    parts = [abs(measured[a.name] - asked[a.name]) / (a.high - a.low) for a in schema.attributes if a.name in measured]
    return sum(parts) / len(parts) if parts else 1.0


async def _merged(sources: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """(index, event) of all of them as they come."""
    if len(sources) == 1:
        async for event in sources[0]:
            yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue(maxsize=4 * len(sources))

    async def pump(index: int) -> None:
        try:
            async for event in sources[index]:
                await arrived.put((index, event))
            await arrived.put((index, None))
        except Exception as error:
            await arrived.put((index, error))

    pumps = [asyncio.create_task(pump(i)) for i in range(len(sources))]
    try:
        still_open = len(sources)
        while still_open:
            index, news = await arrived.get()
            if isinstance(news, BaseException):
                raise news
            if news is None:
                still_open -= 1
            else:
                yield index, news
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
