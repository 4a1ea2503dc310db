"""`python -m serve [CONFIG.yaml] [key=value ...] [--plan]`: serve a policy until Ctrl-C.

Knows the terminal; `serve.deploy` knows Ray Serve.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from actors.generation.settings import ENDPOINT
from actors.generation.vllm_installed import require_installed
from cluster.connect import connect, on_this_machine
from cluster.errors import ClusterError
from cluster.settings.load import command_line
from data.errors import UserError
from data.uris import shown_uri
from serve.auth import KEYS_VARIABLE, Keys
from serve.deploy import require_free_port, start
from serve.feedback_store import FeedbackStore
from serve.live_store import LiveStore
from serve.locate import Located, locate_all
from serve.settings import LOOPBACK, ServeSettings

CONFIG = str(Path(__file__).with_name("config.yaml"))
ABOUT = (
    "Serve a policy: OpenAI's chat completions with `attributes` at /v1/chat/completions, a playground at /. "
    "Stops on Ctrl-C or SIGTERM."
)
FLAGS = {
    "plan": "print what each replica will hold of its device, from config.json alone; refuse what cannot fit; start "
    "nothing"
}


def main(argv: list[str]) -> int:
    """The exit code: 0 after Ctrl-C or SIGTERM, 2 for an error in the settings, 1 if the endpoint does not come up."""
    own_config = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    words = argv if own_config else [CONFIG, *argv]
    settings, flags = command_line(ServeSettings, words, "python -m serve", ABOUT, FLAGS)
    if "plan" in flags:
        return _plan(settings)
    here = on_this_machine()
    try:
        if here:
            require_installed(settings.engine, ENDPOINT)
        models, predictor = locate_all(settings)
        keys = Keys(settings.teams, settings.keys, os.environ.get(KEYS_VARIABLE, ""))
        if settings.feedback.store is not None:
            FeedbackStore(settings.feedback.store).require_writable()
        if settings.live.store is not None:
            LiveStore(settings.live.store).require_writable()
        if here:  # on a cluster, Serve may run already, and listen there
            require_free_port(settings.host, settings.port)
    except UserError as problem:
        return _failed_with(problem, 2)
    rated = f"answers can be rated by {predictor}"
    unrated = "no predictor, so answers cannot be rated (score, best_of)"
    facts = [f"model {model.name} from {model.uri}" for model in models]
    facts += [f"adapter {name} of {model.name} from {uri}" for model in models for name, uri in model.adapters.items()]
    facts += _not_served(settings, models)
    facts += [rated if predictor else unrated, *_kept(settings), _reach(settings, keys)]
    for fact in facts:
        print(f"serve: {fact}", flush=True)
    try:
        return _serve(settings, models, predictor)
    except (RuntimeError, ConnectionError, UserError, ClusterError) as problem:
        return _failed_with(problem, 1)
    except KeyboardInterrupt:
        return 0


def _plan(settings: ServeSettings) -> int:
    """The exit code: 1 for what cannot fit, 2 for an error in the settings."""
    from serve.plan import ServePlan  # with torch

    try:
        plan = ServePlan(settings, *locate_all(settings))
        print("\n".join(f"serve: {line}" for line in plan.lines()), flush=True)
    except UserError as problem:
        return _failed_with(problem, 2)
    refusals = list(plan.problems())
    for refusal in refusals:
        print(f"serve: {refusal}", file=sys.stderr)
    return 1 if refusals else 0


def _reach(settings: ServeSettings, keys: Keys) -> str:
    """Who can call, in a sentence."""
    if not keys.any:
        return f"no keys are set, so only this machine can call it ({settings.host})"
    where = f"every machine that reaches {settings.host}:{settings.port}, without TLS"
    teams = ", ".join(team.name for team in settings.teams)
    return f"callers need a key of {teams}; reachable from {'this machine' if settings.host in LOOPBACK else where}"


def _not_served(settings: ServeSettings, models: Sequence[Located]) -> list[str]:
    """Models that teams may use and that are not there, in a sentence: adapters to come, or slips of the pen."""
    names = {name for model in models for name in (model.name, *model.adapters)}
    missing = {name: team.name for team in settings.teams for name in team.models if name not in names}
    return [f"team {team} may use model {name}, which is not served yet" for name, team in missing.items()]


def _kept(settings: ServeSettings) -> list[str]:
    """Which texts of people are kept, and which values of answers, in a sentence each."""
    feedback, live, found = settings.feedback, settings.live, []
    if feedback.store is not None:
        teams = [team.name for team in settings.teams if team.feedback] if settings.has_keys else ["everyone"]
        store = f"{shown_uri(feedback.store)} keeps answers of {', '.join(teams)} for {feedback.answers_minutes} min"
        found.append(f"feedback: {store}, and rated ones for {feedback.retention_days} days")
    if live.store is not None:
        store = f"{shown_uri(live.store)} keeps requested and measured values for {live.retention_days} days"
        found.append(f"live: {store}, without texts; {live.share:.4g} of the requests are rated for it")
    return found


def _serve(settings: ServeSettings, models: Sequence[Located], predictor: str | None) -> int:
    started = time.monotonic()
    _on_signals(_interrupt)
    # Logical CPUs: a replica asks for a share, and one must be left for Ray's own tasks.
    needed = len(models) * settings.max_replicas * settings.num_cpus + (settings.scorer.num_cpus if predictor else 0)
    with connect(num_cpus=max(2, math.ceil(needed) + 1), object_store_bytes=settings.object_store_bytes):
        # Again, because Ray puts a handler of its own in place that ends the process at once.
        _on_signals(_interrupt)
        endpoint = start(settings, models, predictor)
        try:
            ready = f"ready after {time.monotonic() - started:.0f} s at {endpoint.url} (playground)"
            print(f"serve: {ready} - try: {example(endpoint.url)}", flush=True)
            threading.Event().wait()
        finally:
            _on_signals(signal.SIG_IGN)
            endpoint.stop()
    return 0


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Says so at once, also while the endpoint still starts, which takes seconds to undo."""
    _on_signals(signal.SIG_IGN)  # a second Ctrl-C would leave half of it running
    os.write(1, b"serve: stopping\n")  # `print` may be in the middle of another line
    raise KeyboardInterrupt


def example(url: str) -> str:
    """A curl command that any policy answers."""
    body = json.dumps({"messages": [{"role": "user", "content": "Tell me about owls."}], "max_tokens": 64})
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _failed_with(problem: BaseException, code: int) -> int:
    print(f"serve: {problem}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
