"""Credentials in URIs: found, and masked before a text leaves the process. Knows no setting and no job.

A credential is `user:password@` or a lone token before a host, and a signed query or fragment (`?X-Amz-Signature=`,
`?sig=`, `#access_token=`). Container names (`abfss://container@account`), revisions (`hf://datasets/a/b@main`), ports
and globs (`part-?.jsonl`) are none.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.errors import ClusterError

MASK = "..."
SECRET_NAMES = ("password", "secret", "token", "credential", "credentials", "key")
"""A setting that holds a text is hidden if the last word of its name is one of these; `max_tokens` holds no text."""

# A password may hold slashes, as AWS keys do; `host:8080/` is a port, `zip://a.csv::https://` a chain. The bounds keep
# the search linear.
_PASSWORD = re.compile(r"""(:/+)[^\s/@:"'<>]{0,256}(?::|%3A)(?!:|\d{1,5}[/?#])[^\s"'<>]{0,1024}@""", re.IGNORECASE)
_TOKEN = re.compile(r"""(https?:/+)[^\s/@:"'<>?#]{1,4096}@""", re.IGNORECASE)
_QUERY = re.compile(r"""([?#])(\??[\w.~%+-]+=[^\s"'<>]*[^\s"'<>.,;:)\]}])""")
_SECRET_PARAMETER = re.compile(
    r"(.*(signature|token|secret|password|passwd|pwd|key|keyid|credentials?|accessid|hmac)"
    r"|sig|pass|auth|authorization|jwt|sas|code|session|hdnts|hdnea)"
)


BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
SHORTEST = 6
"""Characters: shorter parts of a credential may stand in any text by chance."""


class CredentialFound(ClusterError):
    """A credential where others would read it."""


def masked(text: str) -> str:
    """`text` with every credential in its URIs replaced by "...": unchanged if there is none.

    >>> masked("cannot read https://bob:pw@host/x?sig=abc; free space")
    'cannot read https://...@host/x?...; free space'
    """
    if "@" in text and ":/" in text:
        text = _TOKEN.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1{MASK}@", text))
    return _QUERY.sub(_unsigned, text) if "=" in text else text


def _unsigned(query: re.Match[str]) -> str:
    """The whole query goes if one parameter is secret: the others of a signed one describe the key."""
    names = (parameter.partition("=")[0] for parameter in query[2].split("&"))
    secret = any(_SECRET_PARAMETER.fullmatch(re.sub(r"[\W\d_]", "", name).lower()) for name in names)
    return f"{query[1]}{MASK}" if secret else query[0]


def without_credentials(value: Any) -> Any:
    """The same for every text in a JSON-like value, keys too."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {without_credentials(key): without_credentials(below) for key, below in value.items()}
    return [without_credentials(below) for below in value] if isinstance(value, list | tuple) else value


def without_secrets(value: Any) -> Any:
    """Settings as they may be shown: as `without_credentials`, and texts called `..._key` and the like are masked."""
    if isinstance(value, Mapping):
        return {
            masked(str(key)): MASK
            if isinstance(below, str) and below and _is_secret(str(key))
            else without_secrets(below)
            for key, below in value.items()
        }
    return [without_secrets(v) for v in value] if isinstance(value, list | tuple) else without_credentials(value)


def _is_secret(name: str) -> bool:
    return re.split(r"[^a-z]+", name.lower())[-1] in SECRET_NAMES


def texts_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON-like value, with its dotted path."""
    if isinstance(value, str):
        yield path, value
    below = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in below:
        yield from texts_in(inner, f"{path}.{key}".lstrip("."))


def credentials_in(value: Any) -> list[str]:
    """Dotted paths of the settings whose text holds a credential."""
    return [path for path, text in texts_in(value) if masked(text) != text]


def require_no_credentials(settings: Sequence[str]) -> None:
    """Raise CredentialFound for the first of these settings, which hold a credential."""
    if settings:
        raise CredentialFound(
            f"{settings[0]} has a credential in its URI, and a cluster shows a job's command, preset and log to all "
            "its users; take it out: give the nodes a role, or put the key into their environment (SECURITY.md)"
        )


def require_plain_buckets(settings: Any) -> None:
    """Raise CredentialFound for a bucket with a credential before it: no store reads it, and errors repeat it."""
    for path, text in texts_in(settings):
        if text.lower().startswith(BUCKETS) and _PASSWORD.match(text, text.index(":")):
            raise CredentialFound(
                f"{path} has a credential before its bucket, {masked(text)}, and a bucket takes none there; write "
                "the bucket alone, and put the key into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )


_known: set[str] = set()


def remember_credentials(value: Any) -> None:
    """Mask the credentials in the URIs of these settings wherever they are printed: libraries repeat them in parts."""
    for _, text in texts_in(value):
        for match in (*_PASSWORD.finditer(text), *_TOKEN.finditer(text)):
            user = match[0][len(match[1]) : -1]
            _known.update((user, re.split("(?i):|%3A", user, maxsplit=1)[-1]))
        for match in _QUERY.finditer(text):
            if _unsigned(match) != match[0]:
                _known.update(parameter.partition("=")[2] for parameter in match[2].split("&"))


def _without_known(text: str) -> str:
    for credential in sorted(_known, key=len, reverse=True):
        if len(credential) >= SHORTEST:
            text = text.replace(credential, MASK)
    return text


class MaskedStream:
    """A text stream that masks what is written to it; everything else is the stream's own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_without_known(masked(text)))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_streams() -> None:
    """From now on stdout and stderr mask credentials: our lines, tracebacks, and what Ray brings from its workers.

    A piece that is written at once is searched as a whole; loggers, tracebacks and `print` write so.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is not None and not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream))
