"""Texts of answers are kept and people's ratings of them taken, beside the event loop that answers.

An answer is kept before the end of its reply is sent, so who has the whole reply can rate it, also after a crash. A
storage that is slow or away holds up no answer for longer than KEEP_S. Knows no HTTP and no Ray; the files are in
`serve.feedback_store`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from data.attributes import AttributeProblem
from serve.admission import AdmittedRequest
from serve.auth import Team
from serve.dated_files import cause
from serve.feedback_request import FeedbackRequest
from serve.feedback_store import FeedbackSettings, FeedbackStore, KeptAnswer, KeptMessage
from serve.protocol import ProtocolError
from serve.requested import wrong_attribute

logger = logging.getLogger("ray.serve")

KEEP_S = 2.0
"""How long the end of a reply waits for its text to be written; the writing goes on behind it."""
STORE_S = 30.0
"""How long who rates or deletes waits for the storage."""
NUM_THREADS = 8
"""That write, read and remove at the same time; they wait for the storage, not for a CPU."""
MOST_WAITING = 256
"""Answers whose texts wait to be written; one more is not kept, as its text would fill the memory."""
SWEEP_S = 3600.0

T = TypeVar("T")


class Feedback:
    """Of one ingress; several write to the same store."""

    def __init__(
        self,
        store: FeedbackStore,
        settings: FeedbackSettings,
        lost: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ):
        """`lost` is called for each answer whose text could not be kept."""
        self._store, self.settings, self._lost, self._clock = store, settings, lost, clock
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="feedback")
        self._writing: set[asyncio.Task[None]] = set()
        self._is_late = False

    @classmethod
    def of(cls, settings: FeedbackSettings, lost: Callable[[], None]) -> "Feedback | None":
        """None if it is off."""
        return None if settings.store is None else cls(FeedbackStore(settings.store), settings, lost)

    async def keep(self, team: Team, accepted: AdmittedRequest, texts: Sequence[str]) -> None:
        """Keeps a whole reply's answers, if its team gives feedback and they could be rows; raises nothing.

        Every choice is there, in its place.
        """
        if not team.feedback:
            return
        if len(self._writing) >= MOST_WAITING:
            self._not_kept(f"{MOST_WAITING} others wait to be written")
            return
        task = asyncio.create_task(self._write(team, accepted, texts))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        if not self._is_late:  # then nobody waits, until something is written again
            await asyncio.wait({task}, timeout=KEEP_S)
            self._is_late = not task.done()

    async def _write(self, team: Team, accepted: AdmittedRequest, texts: Sequence[str]) -> None:
        def write() -> None:
            answer = kept_answer(team, accepted, texts)
            if answer is not None:
                self._store.put_answer(answer)

        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, write)
        except Exception as error:  # each storage has its own
            self._not_kept(cause(error))
        else:
            self._is_late = False

    def _not_kept(self, why: str) -> None:
        logger.error("an answer was not kept, so it cannot be rated: %s", why)
        self._lost()

    async def rate(self, team: Team, rater: str, sent: FeedbackRequest) -> dict[str, float]:
        """The ratings as they are kept now, safe from any crash; raises ProtocolError."""
        answer = await self._done(self._store.answer, team.name, sent.id)
        if answer is None:
            raise self._unknown(sent.id)
        if sent.index >= len(answer.choices) or not answer.is_row(sent.index):
            what = "is empty" if sent.index < len(answer.choices) else "is not there"
            message = f"choice {sent.index} of the answer {what}; it has {len(answer.choices)}, counted from 0"
            raise ProtocolError(message, "index", "unknown_choice")
        try:
            values = answer.attribute_schema.checked(sent.attributes)
        except AttributeProblem as problem:
            raise wrong_attribute("attributes", problem) from None
        if not await self._done(self._store.put_rating, answer, sent.index, values, rater, self._clock()):
            raise self._unknown(sent.id)
        return values

    async def delete(self, team: Team, id: str) -> tuple[int, int]:
        """(texts, ratings) of an answer that were removed; raises ProtocolError (404) if there is nothing."""
        removed = await self._done(self._store.delete, team.name, id)
        if not any(removed):
            raise self._unknown(id)
        return removed

    async def delete_all(self, team: Team) -> tuple[int, int]:
        """The same for all of a team's."""
        return await self._done(self._store.delete_all, team.name)

    async def keep_swept(self, every_s: float = SWEEP_S) -> None:
        """Removes what is kept long enough, now and every `every_s`."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._threads, self._store.sweep, self.settings, self._clock())
            except Exception as error:  # each storage has its own; the next round tries again
                logger.error("old feedback was not removed: %s", cause(error))
            await asyncio.sleep(every_s)

    async def _done(self, step: Callable[..., T], *arguments: object) -> T:
        work = asyncio.get_running_loop().run_in_executor(self._threads, step, *arguments)
        try:
            return await asyncio.wait_for(work, STORE_S)
        except Exception as error:  # each storage has its own; TimeoutError is ours
            logger.error("feedback failed: %s", cause(error))
            message = "the store of feedback failed, so nothing is certain: send it again"
            raise ProtocolError(message, code="feedback_failed", status=503, retry_after_s=5) from None

    def _unknown(self, id: str) -> ProtocolError:
        kept = f"the texts of this team's conversations without tools are kept for {self.settings.answers_minutes} min"
        return ProtocolError(f"no answer {id[:60]!r} is kept here: {kept}", "id", "answer_not_found", 404)


def kept_answer(team: Team, accepted: AdmittedRequest, texts: Sequence[str]) -> KeptAnswer | None:
    """None if it could be no row: a raw prompt, a conversation with tools, nothing but empty answers."""
    generation = accepted.generations[0]
    if generation.prompt is not None or generation.tool_chat is not None:
        return None
    begun, turns = generation.begun, generation.messages
    answer = KeptAnswer(
        id=accepted.reply.id,
        team=team.name,
        model=accepted.model.name,
        policy=accepted.model.info.policy,
        attribute_schema=accepted.model.schema,
        requested=dict(accepted.requested),
        effective=dict(generation.attributes),
        system=generation.system,
        messages=tuple(KeptMessage(role=t.role, content=t.content) for t in turns[: -1 if begun is not None else None]),
        choices=tuple((begun or "") + text for text in texts),
    )
    return answer if any(map(answer.is_row, range(len(answer.choices)))) else None
