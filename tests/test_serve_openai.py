"""The `openai` Python client against the running endpoint: with keys, teams, two models, and a swap under way."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from support.endpoint import QUESTION, Endpoint, running
from support.policies import turned_policy

from serve.auth import Team, hashed
from serve.locate import Located

pytestmark = [
    pytest.mark.ray,
    # openai's client leaves its connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TEAMS = (
    Team(name="games", profiles=("gaming",)),
    Team(name="free"),
    Team(name="ops", admin=True),
    Team(name="slow", tokens_per_minute=100),
)


TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture(scope="module")
def other_policy(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return turned_policy(tiny_base, str(tmp_path_factory.mktemp("other")))


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("\n".join([*(f"{t.name} {hashed(t.name)}" for t in TEAMS), f"free {hashed('stolen')} revoked"]))
    return file


@pytest.fixture(scope="module")
def endpoint(
    ray_cluster: object, tiny_policy: str, tiny_predictor: str, other_policy: str, keys_file: Path
) -> Iterator[Endpoint]:
    models = [Located(tiny_policy, "stable"), Located(other_policy, "canary", weight=0)]
    with running(models, tiny_predictor, teams=TEAMS, keys=str(keys_file)) as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with client_of(endpoint, "free") as client:
        yield client


def client_of(endpoint: Endpoint, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=key, max_retries=0, timeout=60)


def answer_of(client: openai.OpenAI, **more: object) -> str:
    fields = {"model": "stable", "messages": QUESTION, "max_tokens": 12, "seed": 3, **more}
    return str(client.chat.completions.create(**fields).choices[0].message.content)  # type: ignore[call-overload]


def test_chat_with_attributes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="stable", messages=QUESTION, max_tokens=12, seed=3, extra_body={"attributes": {"humor": 4}, "score": True}
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    steering = answer.model_extra["steering"]
    assert steering["effective"]["humor"] == 4
    assert set(steering["measured"]) == set(steering["effective"])


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="stable",
            messages=QUESTION,
            max_tokens=12,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer_of(client)
    assert chunks[-1].usage is not None
    with client.chat.completions.create(model="stable", messages=QUESTION, stream=True) as left:
        next(iter(left))


def test_the_stream_helper_keeps_what_was_measured(client: openai.OpenAI) -> None:
    fields = {"model": "stable:gaming", "messages": QUESTION, "max_tokens": 12, "seed": 3, "verbosity": "high"}
    with client.chat.completions.stream(**fields, extra_body={"score": True}) as events:  # type: ignore[arg-type]
        assert all(event.chunk.choices for event in events if event.type == "chunk")
        whole = events.current_completion_snapshot  # the final one is refused if its answer was cut
    steering = whole.choices[0].message.model_extra["steering"]  # type: ignore[index]
    assert set(steering["measured"]) == set(steering["effective"])
    assert (steering["effective"]["verbosity"], steering["sources"]) == (3, {"verbosity": "verbosity"})


def test_what_applications_send_unasked(client: openai.OpenAI) -> None:
    plain = answer_of(client)
    assert answer_of(client, tools=TOOLS, store=True, metadata={"run": "7"}, parallel_tool_calls=True) == plain
    assert answer_of(client, presence_penalty=0, logprobs=False, extra_body={"min_p": 0, "top_k": -1}) == plain
    whole = client.chat.completions.create(model="stable", messages=QUESTION, max_tokens=10**6, temperature=0)
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_a_conversation_in_any_order(client: openai.OpenAI) -> None:
    system, greeting = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello."}
    assert answer_of(client, messages=[greeting, system, *QUESTION, *QUESTION, system]) is not None
    assert answer_of(client, messages=[*QUESTION, {"role": "assistant", "content": "The moon"}]) != answer_of(client)


def test_several_turns_and_several_answers(client: openai.OpenAI) -> None:
    earlier = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": "Round.", "attributes": {"humor": 0}},
        *QUESTION,
    ]
    assert (
        client.chat.completions.create(model="stable", messages=earlier, max_tokens=5, n=2, seed=1).choices[1].index
        == 1
    )


def test_the_client_s_own_second_turn(client: openai.OpenAI) -> None:
    """People append the message object of the reply."""
    first = client.chat.completions.create(model="stable", messages=QUESTION, max_tokens=5, seed=3).choices[0].message
    assert answer_of(client, messages=[*QUESTION, first, *QUESTION]) is not None


def test_models(client: openai.OpenAI) -> None:
    listed = [m.id for m in client.models.list()]
    assert [name for name in listed if ":" not in name] == ["stable", "canary"]
    assert client.models.retrieve("canary:education").id in listed
    assert answer_of(client) != answer_of(client, model="canary")


@pytest.mark.parametrize(
    ("key", "fields", "error"),
    [
        ("free", {"extra_body": {"attributes": {"humor": 9}}}, openai.BadRequestError),
        ("free", {"extra_body": {"attribute": {}}}, openai.BadRequestError),
        ("free", {"tools": TOOLS, "tool_choice": "required"}, openai.BadRequestError),
        ("free", {"extra_body": {"min_tokens": 4}}, openai.BadRequestError),
        ("free", {"model": "gpt-5"}, openai.NotFoundError),
        ("nobody", {}, openai.AuthenticationError),
        ("stolen", {}, openai.AuthenticationError),
        ("games", {"extra_body": {"profile": "education"}}, openai.PermissionDeniedError),
        ("games", {"extra_body": {"attributes": {"toxicity": 3}}}, openai.BadRequestError),
    ],
)
def test_errors_are_the_client_s_own(
    endpoint: Endpoint, key: str, fields: dict[str, object], error: type[openai.APIStatusError]
) -> None:
    with client_of(endpoint, key) as client, pytest.raises(error) as caught:
        answer_of(client, **fields)
    assert caught.value.message
    assert caught.value.code


def test_over_the_limit_is_429(endpoint: Endpoint) -> None:
    with client_of(endpoint, "slow") as client:
        answer_of(client)
        with pytest.raises(openai.RateLimitError) as caught:
            answer_of(client)
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_swap_under_load_fails_no_request(
    endpoint: Endpoint, client: openai.OpenAI, other_policy: str, tiny_policy: str
) -> None:
    ops, failures, answers, over = replace(endpoint, key="ops"), [], set(), threading.Event()

    def load() -> None:
        with client_of(endpoint, "free") as own:
            while not over.is_set():
                try:
                    answers.add(answer_of(own))
                except openai.OpenAIError as problem:
                    failures.append(problem)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    before, canary = answer_of(client), answer_of(client, model="canary")
    status, _ = ops.post(f'{{"policy": "{other_policy}"}}'.encode(), "/admin/models/stable")
    after = answer_of(client)
    refused, reply = ops.post(b'{"policy": "/nowhere"}', "/admin/models/stable")
    still = answer_of(client)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (status, refused) == (200, 409)
    assert "/nowhere" in reply["error"]["message"]
    assert before != after == still == canary
    assert answers == {before, after}
    assert ops.post(f'{{"policy": "{tiny_policy}"}}'.encode(), "/admin/models/stable")[0] == 200
    assert answer_of(client) == before


def test_the_client_s_other_routes(endpoint: Endpoint, client: openai.OpenAI) -> None:
    whole = client.completions.create(model="stable", prompt="The moon", max_tokens=4, echo=True, logprobs=1, seed=3)
    assert whole.choices[0].text.startswith("The moon")
    assert whole.choices[0].logprobs is not None
    response = client.responses.create(model="stable:gaming", input="Why?", max_output_tokens=5)
    assert response.usage is not None
    assert response.usage.output_tokens <= 5
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
    assert answer_of(client, response_format=form) in ("true", "false")
    status, tokens = replace(endpoint, key="free").post(b'{"prompt": "The moon", "model": "stable"}', "/tokenize")
    assert (status, tokens["count"]) == (200, len(tokens["tokens"]))
