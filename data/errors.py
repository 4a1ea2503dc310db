"""Errors that a person can fix: one sentence is enough for them. Any other is a bug and keeps its traceback. Knows no job."""


class UserError(ValueError):
    """Raised on purpose, with a sentence that says what is wrong and how to fix it.

    A plain ValueError is never one, wherever it was raised: `int("abc")`, `zip(strict=True)` and a broadcast of NumPy raise it as well.
    """


def is_user_error(error: BaseException) -> bool:
    """A UserError, the system's errors about files and connections, and S3's about keys and endpoints."""
    module = type(error).__module__
    if module.startswith("ray."):
        return False  # a worker's OSError comes wrapped as one of Ray's that is an OSError, too, and its text is pages of traceback
    return isinstance(error, UserError | OSError) or module == "botocore.exceptions"
