"""The cluster's Ray Serve: one for all applications on it, ours or other people's. Knows no application.

Ray has public functions for an application, few for Serve itself: its controller is asked directly.
"""

import time
from collections.abc import Callable
from typing import Any

import ray
import ray.serve
import ray.serve.context
from ray._private import worker
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from data.errors import UserError

END_TIMEOUT_S = 60.0
EVERYWHERE = ("0.0.0.0", "::")
LAST_ASKED = "Task ServeController.listen_for_change failed"
"""Serve's processes ask its controller for news until they end. On a busy machine the controller ends before them, and
Ray prints a warning that looks like a failure for each."""


def running() -> bool:
    return _controller() is not None


def applications() -> list[str]:
    return list(ray.serve.status().applications) if running() else []


def require_address(host: str, port: int) -> None:
    """Raises UserError unless the running Serve listens at `host` and `port`: it cannot be made to."""
    options = ray.get(_controller().get_http_config.remote())
    if options.port != port or options.host not in (host, *EVERYWHERE):
        found = f"{options.host}:{options.port}"
        remedy = f"set host to {options.host} and port to {options.port}, or stop what started it"
        raise UserError(
            f"Ray Serve already runs on this cluster and listens on {found}, not on {host}:{port}: {remedy}"
        )


def delete(application: str, drain_s: float) -> None:
    """Take one application down; the others stay. Answers that are being written get `drain_s`.

    `ray.serve.delete` prints a line, and raises after a minute.
    """
    controller = _controller()
    if controller is None:
        return
    ray.get(controller.delete_apps.remote([application]))
    _wait(lambda: application not in applications(), drain_s + END_TIMEOUT_S)


def shut_down() -> None:
    """Take down Serve itself.

    `ray.serve.shutdown` waits for a task of the controller, which the controller's end breaks: Ray prints an error.
    """
    controller = _controller()
    if controller is not None:
        _expect_last_words()
        ray.get(controller.graceful_shutdown.remote(wait=False))
        _wait(lambda: not running(), END_TIMEOUT_S)
    ray.serve.context._set_global_client(None)


def _expect_last_words() -> None:
    """Print what Ray reports to this driver, from now on, but for LAST_ASKED."""
    printed = worker.print_to_stdstream
    if getattr(printed, "without", None) == LAST_ASKED:
        return

    def printed_without(data: dict[str, Any], *arguments: Any, **named: Any) -> None:
        lines = [line for line in data["lines"] if LAST_ASKED not in line]
        if lines:
            printed({**data, "lines": lines}, *arguments, **named)

    printed_without.without = LAST_ASKED  # type: ignore[attr-defined]
    worker.print_to_stdstream = printed_without


def _controller() -> Any:
    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None


def _wait(over: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not over() and time.monotonic() < deadline:
        time.sleep(0.1)
