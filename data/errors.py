"""Which errors a person can mend, so that one sentence is enough; any other is a bug and keeps its traceback. Knows no job."""

import traceback

ROOMS = ("actors", "cluster", "data", "jobs", "serve", "__main__")


def is_for_people(error: BaseException) -> bool:
    """The system's errors about files, S3's about keys and endpoints, and the ValueErrors our own code raises; one from deep in a library is a bug."""
    module = type(error).__module__
    if module.startswith("ray."):
        return False  # a worker's OSError comes wrapped as one of Ray's that is an OSError, too, and says pages
    if isinstance(error, OSError) or module == "botocore.exceptions":
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).split(".")[0] in ROOMS
