"""Bench `serve`: the endpoint, streaming over HTTP, against its bare engine, `transformers serve` and vLLM's server."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from actors.generation.factory import load_engine
from actors.generation.protocol import Engine, Sampling, complete
from actors.generation.settings import EngineSettings
from actors.modeling.policy import PolicyText
from actors.modeling.settings import SmallModel
from data.bounds import Size, Times, TokenBudget, Workers
from data.conversation import Conversation, Message
from data.record import Record
from jobs.bench.clients import LoadResult, load, percentile_s
from jobs.bench.report import Bench, Outcome, by_turns, print_table, ratio_of
from jobs.bench.rows import MEDIUM, SCHEMA, random_policy, real_rows
from jobs.bench.servers import VLLM, ours, server, transformers_serve, vllm_server
from jobs.runner.stage import log

ENDPOINT, BARE, CONTINUOUS, SINGLE = (
    "ours, endpoint",
    "ours, bare engine",
    "transformers serve, continuous batching",
    "transformers serve, one by one",
)
OURS_VLLM, VLLM_SERVER = "ours on vLLM's engine", "vLLM's own server"
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = 5
"""Of the same question, for the prefill that they share."""


class ServeBenchSettings(Record):
    """How many clients and requests, how often, to which model."""

    clients: Workers = 16
    """Clients at the same time, each streaming one answer after another."""
    requests: Size = 48
    """Questions of oasst_model_eval_20k that have at most prompt_tokens, in file order."""
    prompt_tokens: Size = 256
    """Longer prompts are left out."""
    answer_tokens: TokenBudget = 64
    """Tokens of every answer."""
    streams: tuple[Workers, ...] = (64, 256)
    """So many streams at once, beside the comparison: errors, and when the first byte and the first text are there."""
    rounds: Times = 3
    """Alternating rounds; metrics are medians over them."""
    vllm: str = ".venv-vllm"
    """Environment with vLLM (`make test-vllm` makes it); without it, that part is left out."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama."""


def run(settings: ServeBenchSettings) -> Outcome:
    """Tokens per second of wall clock, one thread for the weights of each side, fp32, greedy."""
    rows = real_rows("oasst_model_eval_20k", "prompt_output", 2000)
    with tempfile.TemporaryDirectory() as folder:
        policy = random_policy(folder, settings.model, rows)
        text = PolicyText.load(policy)
        questions = _questions(text, rows, settings)
        bodies = [_body(q, settings) for q in questions]
        found = _main_sides(policy, text, questions, bodies, settings) | _vllm_sides(policy, bodies, settings)
        prefill = _shared_prefill(policy, text, questions[: settings.clients])
        crowds = _crowds(policy, bodies, settings)
    return _outcome(found, prefill, crowds, settings)


def _main_sides(
    policy: str,
    text: PolicyText,
    questions: Sequence[Message],
    bodies: list[dict[str, Any]],
    settings: ServeBenchSettings,
) -> dict[str, list[LoadResult]]:
    with ExitStack() as stack:
        python = Path(sys.executable)
        command = ours(python, policy, "transformers", settings.clients)
        endpoint = stack.enter_context(server(ENDPOINT, command, "/readyz"))
        continuous = stack.enter_context(server(CONTINUOUS, transformers_serve(policy, True), "/health"))
        single = stack.enter_context(server(SINGLE, transformers_serve(policy, False), "/health"))
        # One for all rounds: the endpoint's engine has the prompts of the last round in its prefix cache, too.
        bare = _bare_engine(policy, settings.clients)
        stack.callback(bare.close)
        theirs = [_without_attributes(body) | {"model": policy} for body in bodies]
        ways: dict[str, Callable[[int], LoadResult]] = {
            ENDPOINT: lambda _: load(endpoint, bodies, settings.clients),
            BARE: lambda _: _bare(bare, text, questions, settings),
            CONTINUOUS: lambda _: load(continuous, theirs, settings.clients),
            SINGLE: lambda _: load(single, theirs, settings.clients),
        }
        for way in (ENDPOINT, BARE, CONTINUOUS, SINGLE):  # first requests load, allocate and compile
            log(f"warmed up {way}: {ways[way](0) if way != SINGLE else load(single, theirs[:2], 1)}")
        return by_turns(ways, settings.rounds)


def _vllm_sides(policy: str, bodies: list[dict[str, Any]], settings: ServeBenchSettings) -> dict[str, list[LoadResult]]:
    python = ROOT / settings.vllm / "bin" / "python"
    if not python.exists():
        log(f"no vLLM at {python}: `make test-vllm` installs it; left out")
        return {}
    with ExitStack() as stack:
        command = ours(python, policy, "vllm", settings.clients)
        endpoint = stack.enter_context(server(OURS_VLLM, command, "/readyz", VLLM))
        command = vllm_server(python, policy, settings.model.max_tokens)
        theirs = stack.enter_context(server(VLLM_SERVER, command, "/health", VLLM))
        attributes = [{"chat_template_kwargs": {"attributes": body["attributes"]}} for body in bodies]
        plain = [_without_attributes(body) | a for body, a in zip(bodies, attributes, strict=True)]
        ways: dict[str, Callable[[int], LoadResult]] = {
            OURS_VLLM: lambda _: load(endpoint, bodies, settings.clients),
            VLLM_SERVER: lambda _: load(theirs, plain, settings.clients),
        }
        for name, way in ways.items():
            log(f"warmed up {name}: {way(0)}")
        return by_turns(ways, settings.rounds)


def _crowds(policy: str, bodies: list[dict[str, Any]], settings: ServeBenchSettings) -> dict[int, list[LoadResult]]:
    """Number of streams at once -> a result for each round; every stream has one answer."""
    if not settings.streams:
        return {}
    command = ours(Path(sys.executable), policy, "transformers", settings.clients, max(settings.streams))
    with server(ENDPOINT, command, "/readyz") as endpoint:
        log(f"warmed up {ENDPOINT}: {load(endpoint, bodies, settings.clients)}")

        def at_once(number: int, _: int) -> LoadResult:
            return load(endpoint, [bodies[i % len(bodies)] for i in range(number)], number)

        found = by_turns({f"{n} streams": partial(at_once, n) for n in settings.streams}, settings.rounds)
    return {number: found[f"{number} streams"] for number in settings.streams}


def _questions(text: PolicyText, rows: Sequence[Conversation], settings: ServeBenchSettings) -> list[Message]:
    plain = [r.messages[0] for r in rows if not r.system]
    short = [m for m in plain if len(text.prompt("", [m], SCHEMA.best())) <= settings.prompt_tokens]
    return short[: settings.requests]


def _body(question: Message, settings: ServeBenchSettings) -> dict[str, Any]:
    requested = {"messages": [{"role": "user", "content": question.content}], "attributes": SCHEMA.best()}
    return {"model": "bench", "max_tokens": settings.answer_tokens, "temperature": 0, **requested}


def _without_attributes(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "attributes"}


def _bare_engine(policy: str, max_num_seqs: int) -> Engine:
    settings = EngineSettings(kind="transformers", max_num_seqs=max_num_seqs, prefix_cache_tokens=4096)
    return load_engine(settings, policy, "float32", num_threads=1)[1]


def _bare(engine: Engine, text: PolicyText, questions: Sequence[Message], settings: ServeBenchSettings) -> LoadResult:
    """The engine alone, in this process: no HTTP, no Ray, no text."""
    started = time.monotonic()
    prompts = [text.prompt("", [q], SCHEMA.best()) for q in questions]
    answers = complete(engine, [(ids, Sampling(settings.answer_tokens, temperature=0)) for ids in prompts])
    seconds = time.monotonic() - started
    return LoadResult(sum(len(ids) for ids, _ in answers), seconds)


def _shared_prefill(policy: str, text: PolicyText, questions: Sequence[Message]) -> float:
    """Prompt tokens that go through the model for a question at SETTINGS settings, over those for it at one."""
    engine, alone = _bare_engine(policy, 16), 0
    for question in questions:
        prompts = [text.prompt("", [question], SCHEMA.best() | {"verbosity": value}) for value in range(SETTINGS)]
        alone += len(prompts[0])
        complete(engine, [(ids, Sampling(1, temperature=0)) for ids in prompts])
    engine.close()
    return engine.load.prefilled_tokens / alone


def _outcome(
    found: dict[str, list[LoadResult]],
    prefill: float,
    crowds: dict[int, list[LoadResult]],
    settings: ServeBenchSettings,
) -> Outcome:
    speeds = {name: [result.tokens_per_s for result in rounds] for name, rounds in found.items()}
    ratios = {
        "endpoint_vs_engine": ratio_of(speeds, BARE, ENDPOINT),
        "vs_transformers_serve": ratio_of(speeds, CONTINUOUS, ENDPOINT),
        "vs_single": ratio_of(speeds, SINGLE, ENDPOINT),
        "five_settings_prefill": round(prefill, 3),
    }
    if OURS_VLLM in found:
        ratios["vllm_vs_vllm_server"] = ratio_of(speeds, VLLM_SERVER, OURS_VLLM)
    metrics = {name: _metrics(rounds) for name, rounds in found.items()}
    streams = {f"{number} streams at once": _metrics(rounds) for number, rounds in crowds.items()}
    print_table(
        ("side", "tokens/s", "first byte p95", "first text p50", "p95", "failed"),
        [(name, *("-" if v is None else v for v in side.values())) for name, side in (metrics | streams).items()],
    )
    log(f"prefill of a question at {SETTINGS} settings: {prefill:.2f} of one")
    sizes = settings.model_dump(include={"clients", "requests", "answer_tokens"})
    return Outcome(ratios, sizes | {"sides": metrics, "streams": streams})


def _metrics(rounds: Sequence[LoadResult]) -> dict[str, float | None]:
    def middle(of: Callable[[LoadResult], float | None]) -> float | None:
        values = [value for value in map(of, rounds) if value is not None]
        return round(statistics.median(values), 3) if values else None

    return {
        "tokens_per_s": middle(lambda s: s.tokens_per_s),
        "first_byte_p95_s": middle(lambda s: percentile_s(s.first_byte_s, 0.95)),
        "first_text_p50_s": middle(lambda s: percentile_s(s.first_text_s, 0.5)),
        "first_text_p95_s": middle(lambda s: percentile_s(s.first_text_s, 0.95)),
        "failed": sum(len(s.failures) for s in rounds),
    }


BENCH = Bench(
    "the endpoint, streaming, against its bare engine, `transformers serve` and vLLM's server: tokens per second, fp32",
    ServeBenchSettings,
    run,
)
