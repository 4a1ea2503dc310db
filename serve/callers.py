"""What a request must be before any of it is read: JSON, and without keys from this machine. Knows no route and no key.

Without keys the address of the peer decides, and that the browser of this machine asks for itself: a name of another
site that resolves to 127.0.0.1 (DNS rebinding) has its own Host, a page of another site its own Origin.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from data.printable import printable
from serve.protocol import ProtocolError

HOST = re.compile(r"(\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[0-9a-z.-]+))(:[0-9]{1,5})?", re.IGNORECASE)
PASSED_ON = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
"""A proxy sets them: then the peer is the proxy, and who calls is not known."""
REMEDY = "set teams and keys (`python -m serve.keys TEAM` makes one)"


class CallerChecks:
    """ASGI middleware in front of every route."""

    def __init__(
        self,
        app: ASGIApp,
        keyless: bool,
        refusal: Callable[[ProtocolError], ASGIApp],
        origins: Collection[str] = (),
    ):
        """`refusal` is the answer to a request that goes no further; pages of `origins` may call without a key too."""
        self._app, self._keyless, self._refusal = app, keyless, refusal
        self._origins = frozenset(map(str.lower, origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            try:
                if self._keyless:
                    require_this_machine(scope, self._origins)
                if scope["method"] == "POST":
                    _require_json(scope)
            except ProtocolError as problem:
                app = self._refusal(problem)
        await app(scope, receive, send)


def require_this_machine(scope: Scope, others: Collection[str] = ()) -> None:
    """Raises ProtocolError (403) unless the peer is this machine, and asks for a name of this machine, as itself or for
    a page of `others`."""
    # Both ends: `client` can be what a header says, if FORWARDED_ALLOW_IPS tells uvicorn so; `server` is the socket's.
    ends = [(scope.get(end) or ("an unknown address",))[0] for end in ("client", "server")]
    if not all(map(_is_loopback, ends)):
        raise _not_here(f"this request came from {printable(str(ends[0]))}")
    if any(_values(scope, name) for name in PASSED_ON):
        raise _not_here("this request came through a proxy")
    hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
    if len(hosts) != 1 or not _names_this_machine(hosts[0]):
        raise _not_here(f"this request is for {printable(', '.join(hosts)) or 'no host'}, not for localhost")
    if any(origin.lower() not in (*_own_origins(hosts[0]), *others) for origin in origins):
        raise _not_here(f"this request comes from a page of {printable(', '.join(origins))}")


def _require_json(scope: Scope) -> None:
    """A browser lets any page post a form or plain text to us, but asks us first about JSON."""
    sent = _values(scope, b"content-type")
    if len(sent) != 1 or sent[0].partition(";")[0].strip().lower() != "application/json":
        found = printable(", ".join(sent)) or "missing"
        message = f"Content-Type is {found}; allowed: application/json (curl: -H 'Content-Type: application/json')"
        raise ProtocolError(message, code="unsupported_media_type", status=415)


def _not_here(what: str) -> ProtocolError:
    message = f"no keys are set, so only this machine may call, and {what}: {REMEDY}"
    return ProtocolError(message, code="local_only", status=403, kind="permission_error")


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _names_this_machine(host: str) -> bool:
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found["v6"] or found["name"]
    return name.lower() == "localhost" or _is_loopback(name)


def _own_origins(host: str) -> tuple[str, str]:
    return f"http://{host.lower()}", f"https://{host.lower()}"
