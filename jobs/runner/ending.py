"""How every job ends: one JSON object as the last line of stdout, or one sentence on stderr. Knows no stage, no Ray."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import ClusterError
from cluster.events import json_line, log_event
from data.errors import is_user_error, sentence


@contextlib.contextmanager
def user_errors_reported(program: str, after_stop: str) -> Iterator[None]:
    """A user error in the block is one sentence on stderr and exit code 1; `after_stop` is the advice after Ctrl-C."""
    try:
        yield
    except Exception as error:
        if not (is_user_error(error) or isinstance(error, ClusterError)):
            raise
        log_event(f"{program}: {sentence(error)}", "run.fail", "error")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        log_event(f"{program}: stopped; {after_stop}", "run.stop", "error")
        raise SystemExit(130) from None


def print_last_line(result: Mapping[str, Any]) -> None:
    print(json_line(result), flush=True)
