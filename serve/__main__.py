"""`python -m serve [CONFIG.yaml] [key=value ...]`: serve a policy until Ctrl-C. Knows the terminal; `serve.deploy` knows Ray Serve."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cluster.connect import connect
from cluster.settings import command_line
from serve.deploy import require_free_port, start, stop
from serve.locate import Located, locate
from serve.settings import ServeSettings

CONFIG = str(Path(__file__).with_name("config.yaml"))
ABOUT = "Serve a policy: OpenAI's chat completions with `attributes` at /v1/chat/completions, a playground at /. Stops on Ctrl-C or SIGTERM."


def main(argv: list[str]) -> int:
    """The exit code: 0 after Ctrl-C or SIGTERM, 2 for a mistake in the settings, 1 if the endpoint does not come up."""
    own_config = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    settings, _ = command_line(ServeSettings, argv if own_config else [CONFIG, *argv], "python -m serve", ABOUT)
    try:
        policy = locate(settings.policy, settings.storage)
        require_free_port(settings.host, settings.port)
    except ValueError as problem:
        return _said(problem, 2)
    print(f"serve: policy {settings.name or policy.name} from {policy.uri}", flush=True)
    print(f"serve: no keys are set, so only this machine can call it ({settings.host})", flush=True)
    try:
        return _serve(settings, policy)
    except (RuntimeError, ConnectionError, ValueError) as problem:
        return _said(problem, 1)
    except KeyboardInterrupt:
        return 0


def _serve(settings: ServeSettings, policy: Located) -> int:
    started = time.monotonic()
    _on_signals(_interrupt)
    # Logical CPUs: a replica asks for a share, and one must be left for Ray's own tasks.
    with connect(num_cpus=max(2, int(settings.max_replicas * settings.num_cpus) + 1), object_store_bytes=settings.object_store_bytes):
        # Again, because Ray puts a handler of its own in place that ends the process at once.
        _on_signals(_interrupt)
        url = start(settings, policy)
        try:
            print(f"serve: ready after {time.monotonic() - started:.0f} s at {url} (playground) - try: {example(url)}", flush=True)
            threading.Event().wait()
        finally:
            _on_signals(signal.SIG_IGN)  # a second Ctrl-C would leave half of it running
            print("serve: stopping", flush=True)
            stop()
    return 0


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def example(url: str) -> str:
    """A curl command that any policy answers."""
    body = json.dumps({"messages": [{"role": "user", "content": "Tell me about owls."}], "max_tokens": 64})
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _said(problem: BaseException, code: int) -> int:
    print(f"serve: {problem}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
