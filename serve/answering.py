"""The answers to one admitted request: generated side by side, rated on request, the nearest chosen with best_of.

Knows no HTTP: it is given a function that generates and one that rates.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

from data.attributes import AttributeSchema
from serve.admission import AdmittedRequest
from serve.logprobs import ReportedToken
from serve.rate_limits import Reservation
from serve.reply import BestOfCandidate, BestOfChoice, EarlyStop, FinishedAnswer, Usage
from serve.request import Delta, Echo, Event, Failed, GenerationRequest, Started

Generate = Callable[[str, GenerationRequest], AsyncGenerator[Event, None]]
"""Generates with the model of a name; closing the generator cancels it."""
Score = Callable[[GenerationRequest, str], Awaitable[dict[str, float]]]
"""The predictor's values of an answer to a request: attribute -> value."""
LOOP_TURNS = 8
"""Of the event loop: a refusal that waits for nobody is here by then, also where a busy loop is behind the clock."""
BYTES_PER_TOKEN = 4
"""Of usual text."""


class RunningAnswers:
    """The started generations of a request. The owner calls `aclose`."""

    def __init__(self, admitted: AdmittedRequest, generate: Generate, score: Score | None, reservation: Reservation):
        self._admitted, self._score, self._reservation = admitted, score, reservation
        self._events = [generate(admitted.model.name, generation) for generation in admitted.generations]
        self._texts = [""] * len(self._events)
        self._tokens: list[list[ReportedToken]] = [[] for _ in self._events]
        self._echoes: list[Echo | None] = [None] * len(self._events)
        self._finished: dict[int, Delta] = {}
        self._measured: dict[int, dict[str, float]] = {}
        self._counts = [0] * len(self._events)
        self._extra_rows = [0] * len(self._events)
        self.prompt_tokens = self._unguided_tokens = self._rated_tokens = 0
        self._starting: asyncio.Task[None] | None = None

    async def start(self, within_s: float | None = None) -> bool:
        """Does every generation run or wait in an engine? If not `within_s`, ask again: they go on starting.

        Raises ProtocolError if one was refused.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        for _ in range(LOOP_TURNS if within_s is not None else 0):
            if not self._starting.done():
                await asyncio.sleep(0)
        await asyncio.wait([self._starting], timeout=within_s)
        if self._starting.done():
            self._starting.result()
        return self._starting.done()

    async def _start(self) -> None:
        try:
            firsts = await asyncio.gather(*(anext(events) for events in self._events))
        except asyncio.CancelledError:
            # The caller left before its prompt was counted: that costs as much as this says, and no more than it held.
            self._reservation.use(self._admitted.cost.prompt // BYTES_PER_TOKEN)
            raise
        # An answer's prompt counts once, however many answers it gets.
        per_prompt = len(firsts) // self._admitted.num_prompts
        for place, first in enumerate(firsts):
            if isinstance(first, Failed):
                self._reservation.use(first.prompt_tokens)
                raise first.problem()
            assert isinstance(first, Started), f"a generation began with {first}"
            self.prompt_tokens += 0 if place % per_prompt else first.prompt_tokens
            self._unguided_tokens += 0 if place % per_prompt else first.unguided_tokens
            self._extra_rows[place] = int(first.unguided_tokens > 0)
        self._count()
        self._reservation.correct(self.prompt_tokens + self._unguided_tokens)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(index of the answer, new text), as it comes; raises ProtocolError if a generation fails."""
        async with aclosing(_merged(self._events, self._seen)) as merged:
            async for index, event in merged:
                if isinstance(event, Failed):
                    raise event.problem()
                if isinstance(event, Delta):
                    self._texts[index] += event.text
                    self._tokens[index] += event.tokens
                    self._echoes[index] = event.echo or self._echoes[index]
                    if event.finish is not None:
                        self._finished[index] = event
                    yield index, event

    def _seen(self, index: int, event: Event) -> None:
        """Tokens count as they come: whoever reads them may not come to the last ones."""
        if isinstance(event, Delta):
            self._counts[index] = event.completion_tokens
            self._count()

    async def finished(self) -> tuple[list[FinishedAnswer], BestOfChoice | None]:
        """The answers to a request without stream; with best_of the nearest one, and how it was chosen.

        With a target_distance the first that is measured to be near enough ends the others.
        """
        near = asyncio.Event()
        writing, reached = asyncio.create_task(self._write(near)), asyncio.create_task(near.wait())
        try:
            await asyncio.wait([writing, reached], return_when=asyncio.FIRST_COMPLETED)
            if not near.is_set():
                writing.result()
        finally:
            writing.cancel()
            reached.cancel()
            await asyncio.gather(writing, reached, return_exceptions=True)
        until_near = self._admitted.target_distance is not None
        answers = [self._answer(index) for index in (sorted(self._measured) if until_near else range(self._num))]
        if not self._admitted.best_of:
            return answers, None
        chosen, candidates = nearest(answers, self._admitted.model.schema, self._admitted.effective)
        if not until_near:
            return chosen, BestOfChoice(candidates)
        far = next(candidate.distance for candidate in candidates if candidate.chosen)
        written = len(self._finished)
        return chosen, BestOfChoice(candidates, EarlyStop(written=written, distance=far, stopped=written < self._num))

    async def _write(self, near: asyncio.Event) -> None:
        """Write all answers and rate those that are to be rated; sets `near` when one is near enough."""
        rated, until_near = self._admitted.score or self._admitted.best_of, self._admitted.target_distance is not None
        rating: list[asyncio.Task[None]] = []
        try:
            async with aclosing(self.deltas()) as deltas:
                async for index, delta in deltas:
                    if until_near and delta.finish is not None:
                        rating.append(asyncio.create_task(self._rate(index, near)))
            if rated and not until_near:  # together: the predictor packs them into one forward
                rating = [asyncio.create_task(self._rate(index, near)) for index in range(self._num)]
            await asyncio.gather(*rating)
        finally:
            for task in rating:
                task.cancel()
            await asyncio.gather(*rating, return_exceptions=True)

    async def _rate(self, index: int, near: asyncio.Event) -> None:
        self._measured[index] = measured = await self.measured(index)
        target = self._admitted.target_distance
        if target is not None and distance(self._admitted.model.schema, self._admitted.effective, measured) <= target:
            near.set()

    async def measured(self, index: int = 0) -> dict[str, float]:
        """The values of an answer that is whole, on the scale of the policy's labels."""
        assert self._score is not None, "admission refuses to measure where there is no predictor"
        self._rated_tokens += self._admitted.cost.rated(self.prompt_tokens, self._counts[index])
        self._count()
        generation, text = self._admitted.generations[index], self._texts[index]
        values = await self._score(generation, text)
        return self._admitted.model.measured(values, (generation.begun or "") + text)

    @property
    def texts(self) -> Sequence[str]:
        """As far as they are here."""
        return self._texts

    @property
    def num_tokens(self) -> Sequence[int]:
        """Of each, so far."""
        return self._counts

    @property
    def are_whole(self) -> bool:
        return len(self._finished) == len(self._events)

    @property
    def usage(self) -> Usage:
        """As OpenAI counts: the prompt once, all answers."""
        prompt, completion = self.prompt_tokens, sum(self._counts)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def _count(self) -> None:
        """Its team pays as the answers grow, so that however they end nothing is left to pay."""
        again = sum(count * rows for count, rows in zip(self._counts, self._extra_rows, strict=True))
        self._reservation.use(self.usage.total_tokens + self._unguided_tokens + again + self._rated_tokens)

    async def aclose(self) -> None:
        """Cancels what still runs."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await asyncio.gather(*(events.aclose() for events in self._events), return_exceptions=True)

    def _answer(self, index: int) -> FinishedAnswer:
        finish = self._finished[index].finish
        assert finish is not None
        tokens, echo = self._tokens[index], self._echoes[index]
        measured, num_tokens = self._measured.get(index), self._counts[index]
        return FinishedAnswer(self._texts[index], finish, measured, tokens, echo, num_tokens)

    @property
    def _num(self) -> int:
        return len(self._events)


def nearest(
    answers: Sequence[FinishedAnswer], schema: AttributeSchema, effective: Mapping[str, int]
) -> tuple[list[FinishedAnswer], list[BestOfCandidate]]:
    """The answer whose measured attributes are nearest to the effective ones, alone, and all candidates."""
    distances = [distance(schema, effective, answer.measured or {}) for answer in answers]
    best = min(range(len(answers)), key=distances.__getitem__)
    return [answers[best]], [
        BestOfCandidate(measured=answer.measured or {}, distance=far, chosen=i == best)
        for i, (answer, far) in enumerate(zip(answers, distances, strict=True))
    ]


def distance(schema: AttributeSchema, effective: Mapping[str, int], measured: Mapping[str, float]) -> float:
    """Mean over the attributes of |measured - effective| / range."""
    rated = [a for a in schema.attributes if a.name in measured]
    parts = [abs(measured[a.name] - effective[a.name]) / (a.high - a.low) for a in rated]
    return sum(parts) / len(parts) if parts else 1.0


def gaps(effective: Mapping[str, int], measured: Mapping[str, float]) -> dict[str, float]:
    """|measured - effective| of each attribute, in points of its scale."""
    return {name: abs(value - effective[name]) for name, value in measured.items()}


async def _merged(
    sources: Sequence[AsyncGenerator[Event, None]], seen: Callable[[int, Event], None]
) -> AsyncGenerator[tuple[int, Event], None]:
    """(index, event) of all of them as they come; `seen` is told at once, before the events that wait to be read."""
    if len(sources) == 1:
        async for event in sources[0]:
            seen(0, event)
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue(maxsize=4 * len(sources))

    async def pump(index: int) -> None:
        try:
            async for event in sources[index]:
                seen(index, event)
                await queue.put((index, event))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    pumps = [asyncio.create_task(pump(i)) for i in range(len(sources))]
    try:
        still_open = len(sources)
        while still_open:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                still_open -= 1
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
