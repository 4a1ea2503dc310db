"""What all records of the protocol share, and its errors.

Knows no JSON, no schema of attributes, no HTTP server, no Ray and no model. Requests: `serve.chat_request`,
`serve.completion_request`; replies: `serve.reply`. What other servers have and we do not: `serve.tolerance`.
"""

from pydantic import ConfigDict, Field

from data.errors import UserError
from data.printable import printable
from data.record import Record

MAX_MESSAGE_CHARS = 400
MAX_PARAM_CHARS = 200
"""Of an error: what a caller sent may be in it."""
ERROR_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""HTTP status -> OpenAI's `type` of an error; of all others "invalid_request_error"."""


class ProtocolRecord(Record):
    """A record of the protocol: as strict about types as JSON is ("1" is no number, true is no 1)."""

    model_config = ConfigDict(strict=True)

    @property
    def event_name(self) -> str | None:
        """Of a server-sent event with this record, where its route names them."""
        return None


class ErrorDetail(ProtocolRecord):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ProtocolRecord):
    """OpenAI's error shape."""

    error: ErrorDetail


class ProtocolError(UserError):
    """A request we cannot answer; becomes OpenAI's error object with HTTP status `status`."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str | None = None,
        retry_after_s: int | None = None,
        closes: bool = False,
    ):
        """`closes`: the rest of the request is not read, so its connection ends with the reply."""
        super().__init__(message)
        self.closes = closes
        self.param, self.code, self.status, self.retry_after_s = param, code, status, retry_after_s
        self.kind = kind or ERROR_KINDS.get(status, "invalid_request_error")

    def body(self) -> ErrorBody:
        """On one line, printable and short whatever the caller sent."""
        param = None if self.param is None else printable(self.param, MAX_PARAM_CHARS)
        message = printable(str(self), MAX_MESSAGE_CHARS)
        return ErrorBody(error=ErrorDetail(message=message, type=self.kind, param=param, code=self.code))


class SwapRequest(ProtocolRecord):
    """Body of POST /admin/models/{name}: one of both."""

    policy: str | None = Field(None, min_length=1)
    """A policy folder or a finished run's folder (any URI), or "newest": the newest finished run."""
    adapter: str | None = Field(None, min_length=1)
    """The folder of an exported adapter (any URI), to be served beside the policy under this name."""
