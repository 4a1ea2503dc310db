"""Ray Serve may raise an exception when a caller leaves, which would be logged as our failure. Knows no route."""

import ray.exceptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DisconnectsOfRay:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            try:
                return await receive()
            except ray.exceptions.TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, received, send)
