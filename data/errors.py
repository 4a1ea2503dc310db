"""Errors that a person can fix: one sentence is enough. Any other is a bug and keeps its traceback. Knows no job."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Raised on purpose, with a sentence that says what is wrong and how to fix it.

    A plain ValueError is never one: `int("abc")`, `zip(strict=True)` and NumPy's broadcasting raise it as well.
    """


HTTP = ("httpx", "httpx2", "aiohttp")
"""Packages through which file systems talk to servers; what they raise is about a network."""
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
"""Of botocore, which names no setting."""


def is_user_error(error: BaseException) -> bool:
    """A UserError, the system's errors about files and connections, S3's and HTTP's about keys and endpoints."""
    module = type(error).__module__
    if module.startswith("ray."):
        return False  # a worker's OSError comes wrapped as one of Ray's, and its text is pages of traceback
    return isinstance(error, UserError | OSError) or module == "botocore.exceptions" or module.split(".")[0] in HTTP


def sentence(error: BaseException) -> str:
    """A user error for people: what the system or a store says, with what mends it where they leave that out."""
    if type(error).__name__ in NO_CREDENTIALS and type(error).__module__ == "botocore.exceptions":
        return (
            f"S3 says: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name another place "
            "(storage, and the uri of each source)"
        )
    return str(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or "" if nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
