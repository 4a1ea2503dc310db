"""Bench `serve`: the endpoint over HTTP, streaming, against its own bare engine, against `transformers serve`, and, on vLLM's engine, against vLLM's server."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field

from actors.generation.protocol import Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.policy import Policy
from actors.modeling.tiny_llama import SmallModel
from data.conversation import Conversation, Message
from data.record import Record
from jobs.bench.clients import Served, load
from jobs.bench.report import Bench, Outcome, by_turns, print_table
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


class Settings(Record):
    """Who asks what, how often, of which model."""

    clients: int = Field(16, ge=1)
    """Clients at the same time, each streaming one answer after another."""
    requests: int = Field(48, ge=1)
    """Questions of oasst_model_eval_20k that have at most prompt_tokens, in file order."""
    prompt_tokens: int = Field(256, ge=1)
    """Longer prompts are left out."""
    answer_tokens: int = Field(64, ge=2)
    """Tokens of every answer."""
    rounds: int = Field(3, ge=1)
    """Alternating rounds; figures are medians over them."""
    vllm: str = ".venv-vllm"
    """Environment with vLLM (`make test-vllm` makes it); if it is not there, that part is left out."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama."""


def run(settings: Settings) -> Outcome:
    """Tokens per second of wall clock, one thread for the weights of each side, fp32, greedy."""
    rows = real_rows("oasst_model_eval_20k", "prompt_output", 2000)
    with tempfile.TemporaryDirectory() as folder:
        policy = random_policy(folder, settings.model, rows)
        loaded = Policy.load(policy, num_threads=1)
        questions = _questions(loaded, rows, settings)
        bodies = [_body(q, settings) for q in questions]
        found = _main_sides(policy, loaded, questions, bodies, settings) | _vllm_sides(policy, bodies, settings)
        prefill = _shared_prefill(loaded, questions[: settings.clients])
    return _outcome(found, prefill, settings)


def _main_sides(
    policy: str, loaded: Policy, questions: Sequence[Message], bodies: list[dict[str, Any]], settings: Settings
) -> dict[str, list[Served]]:
    with ExitStack() as stack:
        python = Path(sys.executable)
        endpoint = stack.enter_context(
            server(ENDPOINT, ours(python, policy, "transformers", settings.clients), "/readyz")
        )
        continuous = stack.enter_context(server(CONTINUOUS, transformers_serve(policy, True), "/health"))
        single = stack.enter_context(server(SINGLE, transformers_serve(policy, False), "/health"))
        bare = TransformersEngine(
            loaded, settings.clients, prefix_cache_tokens=4096
        )  # one for all rounds: the endpoint's knows the prompts from the last one, too
        stack.callback(bare.close)
        theirs = [{k: v for k, v in body.items() if k != "attributes"} | {"model": policy} for body in bodies]
        ways: dict[str, Callable[[int], Served]] = {
            ENDPOINT: lambda _: load(endpoint, bodies, settings.clients),
            BARE: lambda _: _bare(bare, loaded, questions, settings),
            CONTINUOUS: lambda _: load(continuous, theirs, settings.clients),
            SINGLE: lambda _: load(single, theirs, settings.clients),
        }
        for way in (ENDPOINT, BARE, CONTINUOUS, SINGLE):  # first requests load, allocate and compile
            log(f"warmed up {way}: {ways[way](0) if way != SINGLE else load(single, theirs[:2], 1)}")
        return by_turns(ways, settings.rounds)


def _vllm_sides(policy: str, bodies: list[dict[str, Any]], settings: Settings) -> dict[str, list[Served]]:
    python = ROOT / settings.vllm / "bin" / "python"
    if not python.exists():
        log(f"no vLLM at {python}: `make test-vllm` installs it; left out")
        return {}
    with ExitStack() as stack:
        endpoint = stack.enter_context(
            server(OURS_VLLM, ours(python, policy, "vllm", settings.clients), "/readyz", VLLM)
        )
        theirs = stack.enter_context(
            server(VLLM_SERVER, vllm_server(python, policy, settings.model.max_tokens), "/health", VLLM)
        )
        plain = [
            {k: v for k, v in body.items() if k != "attributes"}
            | {"chat_template_kwargs": {"attributes": body["attributes"]}}
            for body in bodies
        ]
        ways: dict[str, Callable[[int], Served]] = {
            OURS_VLLM: lambda _: load(endpoint, bodies, settings.clients),
            VLLM_SERVER: lambda _: load(theirs, plain, settings.clients),
        }
        for name, way in ways.items():
            log(f"warmed up {name}: {way(0)}")
        return by_turns(ways, settings.rounds)


def _questions(policy: Policy, rows: Sequence[Conversation], settings: Settings) -> list[Message]:
    short = [
        r.messages[0]
        for r in rows
        if not r.system and len(policy.prompt("", r.messages[:1], SCHEMA.best())) <= settings.prompt_tokens
    ]
    return short[: settings.requests]


def _body(question: Message, settings: Settings) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": question.content}], "attributes": SCHEMA.best()}
    return {"model": "bench", "max_tokens": settings.answer_tokens, "temperature": 0, **asked}


def _bare(engine: TransformersEngine, policy: Policy, questions: Sequence[Message], settings: Settings) -> Served:
    """The engine alone, in this process: no HTTP, no Ray, no text."""
    started = time.monotonic()
    prompts = [policy.prompt("", [q], SCHEMA.best()) for q in questions]
    answers = complete(engine, [(ids, Sampling(settings.answer_tokens, temperature=0)) for ids in prompts])
    seconds = time.monotonic() - started
    return Served(sum(len(ids) for ids, _ in answers), seconds)


def _shared_prefill(policy: Policy, questions: Sequence[Message]) -> float:
    """Prompt tokens that go through the model for a question at five settings, for each of it at one."""
    engine, alone = TransformersEngine(policy, 16, prefix_cache_tokens=4096), 0
    for question in questions:
        prompts = [policy.prompt("", [question], SCHEMA.best() | {"verbosity": value}) for value in range(SETTINGS)]
        alone += len(prompts[0])
        complete(engine, [(ids, Sampling(1, temperature=0)) for ids in prompts])
    engine.close()
    return engine.load.prefilled_tokens / alone


def _outcome(found: dict[str, list[Served]], prefill: float, settings: Settings) -> Outcome:
    def ratio(one: str, other: str) -> float:
        return round(
            statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(found[one], found[other], strict=True)), 3
        )

    ratios = {
        "endpoint_vs_engine": ratio(ENDPOINT, BARE),
        "vs_transformers_serve": ratio(ENDPOINT, CONTINUOUS),
        "vs_single": ratio(ENDPOINT, SINGLE),
        "five_settings_prefill": round(prefill, 3),
    }
    if OURS_VLLM in found:
        ratios["vllm_vs_vllm_server"] = ratio(OURS_VLLM, VLLM_SERVER)
    metrics = {name: _metrics(rounds) for name, rounds in found.items()}
    print_table(
        ("side", "tokens/s", "first text p50", "p95", "failed"),
        [(name, *("-" if v is None else v for v in figure.values())) for name, figure in metrics.items()],
    )
    log(f"prefill of a question at {SETTINGS} settings: {prefill:.2f} of one")
    return Outcome(
        ratios,
        {
            "clients": settings.clients,
            "requests": settings.requests,
            "answer_tokens": settings.answer_tokens,
            "sides": metrics,
        },
    )


def _metrics(rounds: Sequence[Served]) -> dict[str, float | None]:
    def middle(of: Callable[[Served], float | None]) -> float | None:
        values = [value for value in map(of, rounds) if value is not None]
        return round(statistics.median(values), 3) if values else None

    return {
        "tokens_per_s": middle(lambda s: s.tokens_per_s),
        "first_text_p50_s": middle(lambda s: s.percentile_s(0.5)),
        "first_text_p95_s": middle(lambda s: s.percentile_s(0.95)),
        "failed": sum(len(s.failures) for s in rounds),
    }


BENCH = Bench(
    "the endpoint over HTTP against its bare engine, `transformers serve` and vLLM's server: tokens per second, streaming, fp32",
    Settings,
    run,
)
