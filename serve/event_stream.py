"""Server-sent events on their way to a caller, kept alive while there is nothing to send. Knows no request's fields."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from types import TracebackType

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from serve.protocol import ProtocolRecord
from serve.telemetry import RequestContext

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
KEEP_ALIVE_S = 15.0
"""What the HTML standard advises: proxies close a connection on which nothing comes, many after a minute."""
COMMENT = b": waiting\n\n"
"""An event without data: every client passes over it."""
DONE = "data: [DONE]\n\n"
CLIENT_LEFT = (499, "client_left")
"""Status as nginx has it: the caller went away before the answer was whole."""


def events_of(records: Iterable[ProtocolRecord]) -> str:
    """One for each record."""
    return "".join(map(_event, records))


def _event(record: ProtocolRecord) -> str:
    name = "" if record.event_name is None else f"event: {record.event_name}\n"
    return f"{name}data: {record.model_dump_json()}\n\n"


class EventStream(StreamingResponse):
    """Closes its source and ends the request's context at the end, also if the caller leaves before the first piece."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack, context: RequestContext):
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._stack, self._context = stack, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._stack, KeptAlive(send, KEEP_ALIVE_S) as kept:
                await super().__call__(scope, receive, kept)
        finally:
            # Only a caller that goes away leaves a stream without an outcome.
            self._context.end(*(self._context.outcome or CLIENT_LEFT))


class KeptAlive:
    """ASGI's `send` of a stream of events, with a comment whenever nothing was sent for `every_s`."""

    def __init__(self, send: Send, every_s: float):
        self._send, self._every_s = send, every_s
        self._sending = asyncio.Lock()
        self._is_open = False
        self._sent_s = 0.0

    async def __aenter__(self) -> "KeptAlive":
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)

    async def __call__(self, message: Message) -> None:
        async with self._sending:
            self._is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            await self._send(message)
            self._sent_s = asyncio.get_running_loop().time()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._sent_s = loop.time()
        with contextlib.suppress(OSError):  # the caller is gone, which the stream itself finds out
            while True:
                await asyncio.sleep(self._sent_s + self._every_s - loop.time())
                async with self._sending:
                    if loop.time() - self._sent_s < self._every_s:
                        continue
                    if self._is_open:
                        await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                    self._sent_s = loop.time()
