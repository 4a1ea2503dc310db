"""Request bodies on their way in: how long each may take and be, and how many may be open. Knows no route and no JSON.

A body that stalls holds a place of the endpoint that answers nobody, so a caller has few of them, and an old one makes
room for a new one.
"""

import asyncio
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from data.printable import printable
from serve.protocol import ProtocolError

GRACE_S = 0.5
"""A body that has been open for longer gives its place to a new one, if there are too many."""
MAX_OPEN = 512
"""Open bodies of all callers together: well below what the ingress takes at the same time, so that it stays free."""


@dataclass(frozen=True)
class BodyLimits:
    """What a body may cost."""

    max_bytes: int = 1 << 20
    """As it comes, and unpacked."""
    timeout_s: float = 20.0
    max_open: int = 256
    """Of one team, and of one address."""


@dataclass(frozen=True)
class _Open:
    """A body that is being received."""

    team: str
    peer: str
    since: float
    deadline: asyncio.Timeout


class Bodies:
    """Receives the bodies of all routes that have one."""

    def __init__(self, limits: BodyLimits, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._open: dict[int, _Open] = {}  # oldest first

    async def read(self, request: Request, team: str) -> bytes:
        """The whole body of a team's request.

        Raises ProtocolError: 413 if it is too long, 408 if it takes too long, 429 if too many are open, 415 if nobody
        here can unpack it, 400 if it is not packed as its sender says.
        """
        peer = request.client.host if request.client else ""
        self._make_place(team, peer)
        try:
            async with asyncio.timeout(self._limits.timeout_s) as deadline:
                self._open[id(deadline)] = _Open(team, peer, self._clock(), deadline)
                try:
                    return await self._whole(request)
                finally:
                    self._open.pop(id(deadline), None)
        except TimeoutError:
            limit = f"{self._limits.timeout_s:g} s, or {GRACE_S:g} s while too many are open"
            message = f"the request's body did not arrive in time: send it whole within {limit}"
            raise ProtocolError(message, code="body_timeout", status=408, closes=True) from None

    def _make_place(self, team: str, peer: str) -> None:
        """End the oldest of too many open bodies, or raise ProtocolError (429) if even that one has only begun."""
        crowds: tuple[tuple[int, Callable[[_Open], bool]], ...] = (
            (self._limits.max_open, lambda body: body.team == team),
            (self._limits.max_open, lambda body: body.peer == peer),
            (MAX_OPEN, lambda body: True),
        )
        for limit, is_one in crowds:
            if len(self._open) < limit:
                continue
            crowd = [body for body in self._open.values() if is_one(body)]
            if len(crowd) < limit:
                continue
            if self._clock() - crowd[0].since < GRACE_S:
                message = f"{len(crowd)} request bodies are on their way already, and {limit} may be: try again in 1 s"
                raise ProtocolError(message, code="too_many_bodies", status=429, retry_after_s=1, closes=True)
            crowd[0].deadline.reschedule(0)
            del self._open[id(crowd[0].deadline)]

    async def _whole(self, request: Request) -> bytes:
        """Read no further than the limit, whatever Content-Length is; the same for what is unpacked."""
        unpack = _unpacker(request.headers.get("content-encoding", ""), self._limits.max_bytes)
        length = request.headers.get("content-length", "")
        body = bytearray()
        if length.isdecimal() and len(length) < 20 and int(length) > self._limits.max_bytes:
            raise _too_long(self._limits.max_bytes)
        async for part in request.stream():
            body += unpack(part)
            if len(body) > self._limits.max_bytes:
                raise _too_long(self._limits.max_bytes)
        return bytes(body)


def _too_long(limit: int) -> ProtocolError:
    message = f"the body is longer than {limit} bytes: send a shorter conversation"
    return ProtocolError(message, code="body_too_large", status=413, closes=True)


def _unpacker(encoding: str, limit: int) -> Callable[[bytes], bytes]:
    """What turns the parts of a body into plain ones, at most one byte above `limit` of each.

    Raises ProtocolError (415) for an encoding that is none of ours, and it (400) for a part that is not packed so.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return bytes
        case "gzip" | "x-gzip":
            packed = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        case "deflate":
            packed = zlib.decompressobj()
        case _:
            message = f"Content-Encoding is {printable(encoding)}; allowed: gzip, deflate, or none"
            raise ProtocolError(message, code="unsupported_encoding", status=415, closes=True)

    def unpack(part: bytes) -> bytes:
        try:
            return packed.decompress(part, limit + 1)
        except zlib.error as error:
            message = f"the body is not packed as Content-Encoding says ({error}): pack it so, or leave that header out"
            raise ProtocolError(message, code="invalid_encoding", closes=True) from None

    return unpack
