"""What is changed in a request before a route sees it: HEAD becomes GET, a proxy's path is put back. Knows no route."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """ASGI middleware: HEAD is a GET whose answer has no body. Health checks of load balancers ask so."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


class UnderPath:
    """ASGI middleware: the path begins with `root_path`, as ASGI wants it, also where a proxy has taken that off."""

    def __init__(self, app: ASGIApp, root_path: str):
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not f"{scope['path']}/".startswith(f"{self._root_path}/"):
            scope = {**scope, "path": self._root_path + scope["path"], "root_path": self._root_path}
        await self._app(scope, receive, send)
