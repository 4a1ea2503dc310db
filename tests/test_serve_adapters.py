"""One base, many adapters at the endpoint: models of their own, a team's right to them, swaps, and what is refused."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.adapters import LAB, exported_adapter
from support.asgi import TEAMS, USER, Answered, app_around, ask, exchanged
from support.chat_base import chat_base

from actors.generation.protocol import Sampling
from data.calibration import Calibration
from data.conversation import Message
from data.errors import UserError
from serve.__main__ import main
from serve.auth import Team, hashed
from serve.locate import Located, locate, locate_all
from serve.models import ServedPolicies, ServedPolicy
from serve.replica import Replica
from serve.request import Delta, Event, Failed, GenerationRequest, PolicyInfo, Revision, Started, Tokenized
from serve.settings import ServedEngineSettings, ServeSettings

CALIBRATION = Calibration(scale={"humor": 2.0}, shift={"humor": -1.0})
QUESTION = {"messages": [USER], "temperature": 0, "max_tokens": 12, "ignore_eos": True}
REQUEST = GenerationRequest("", (Message("user", "Why?"),), (), {}, Sampling(12, temperature=0, ignore_eos=True))
KEYS = "\n".join(f"{name} {hashed(f'key-{name}')}" for name in ("games", "all", "lost"))
OWN_TEAMS = [Team(name="games", models=("games",)), Team(name="all"), Team(name="lost", models=("gone",))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters `games`, `school` and `other`, which has another schema, on one base."""
    root = tmp_path_factory.mktemp("adapters")
    base = chat_base(str(root / "base"))
    exported_adapter(base, root / "games", 1, calibration=CALIBRATION)
    exported_adapter(base, root / "school", 2)
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> ServeSettings:
    adapters = {name: str(root / name) for name in ("games", "school")}
    return ServeSettings(policy="base", name="tiny", adapters=adapters, storage=str(root / "runs"))


@pytest.fixture(scope="module")
def located(settings: ServeSettings) -> Located:
    [found], _ = locate_all(settings)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def replica_of(located: Located) -> Replica:
    beside = {name: Revision(folder, 0) for name, folder in located.adapters.items()}
    return Replica(located.name, Revision(located.uri, 0), ServedEngineSettings(max_num_seqs=4), beside)


@pytest.fixture(scope="module")
def replica(located: Located) -> Iterator[Replica]:
    made = replica_of(located)
    yield made
    made._loaded.engine.close()


def app_of(replica: Replica, lines: list[str] | None = None, teams: Sequence[Team] = TEAMS, keys: str = "") -> Any:
    """The endpoint before one replica, as an ingress would address it."""

    async def infos() -> list[PolicyInfo | None]:
        return [await replica.info(), *[await replica.adapter_info(name) for name in replica._adapters]]

    models = ServedPolicies(
        [ServedPolicy(info, 0.0 if info.base else 1.0) for info in asyncio.run(infos()) if info is not None]
    )

    def own(model: str, request: GenerationRequest) -> GenerationRequest:
        return replace(request, adapter="" if models.replicas_of(model) == model else model)

    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for event in replica.generate(own(model, request)):
            yield event

    async def tokenize(model: str, request: GenerationRequest, names: bool) -> Tokenized | Failed:
        return await replica.tokenized(own(model, request), names)

    return app_around(generate, lines=lines, models=models, teams=teams, keys_text=keys, tokenize=tokenize)


def get(app: Any, path: str, key: str | None = None, query: bytes = b"") -> Answered:
    return asyncio.run(exchanged(app, "GET", path, b"", key=key, query=query))


def text(answered: Answered) -> str:
    assert answered.status == 200, answered.json
    return str(answered.json["choices"][0]["message"]["content"])


async def collected(replica: Replica, request: GenerationRequest) -> str:
    events = [event async for event in replica.generate(request)]
    assert isinstance(events[-1], Delta), events
    return "".join(event.text for event in events if isinstance(event, Delta))


def merged(folder: Path, root: Path) -> tuple[str, str]:
    """What the adapter's merged export writes: to QUESTION over HTTP, and to REQUEST."""
    alone = Replica("alone", Revision(locate(str(folder), str(root / "runs")).uri, 0), ServedEngineSettings())
    found = text(ask(app_of(alone), **QUESTION)), asyncio.run(collected(alone, REQUEST))
    alone._loaded.engine.close()
    return found


def test_each_is_a_model_and_answers_as_its_merged_export(replica: Replica, root: Path) -> None:
    lines: list[str] = []
    app = app_of(replica, lines)
    listed = {row["id"]: row for row in get(app, "/v1/models").json["data"]}
    assert {"tiny", "games", "school", "games:education"} <= set(listed)
    assert listed["games"]["parent"] == "tiny"
    assert listed["tiny"]["parent"] is None
    assert get(app, "/v1/models/school").json["id"] == "school"
    answers = {name: text(ask(app, model=name, **QUESTION)) for name in ("tiny", "games", "school")}
    assert len(set(answers.values())) == 3
    assert answers["games"] == merged(root / "games", root)[0]
    assert answers["school"] == merged(root / "school", root)[0]
    assert text(ask(app, **QUESTION)) == answers["tiny"], "who names none gets the base"
    streamed = ask(app, model="games", stream=True, **QUESTION).chunks
    parts = [c["choices"][0]["delta"].get("content") or "" for c in streamed[:-1] if c["choices"]]
    assert "".join(parts) == answers["games"]
    assert [json.loads(line)["model"] for line in lines] == ["tiny", "games", "school", "tiny", "games"]
    assert get(app, "/v1/attributes", query=b"model=games").json["model"] == "games"
    raw = ask(app, path="/v1/completions", model="games", prompt="Why", max_tokens=4, temperature=0)
    assert raw.json["model"] == "games"
    assert ask(app, path="/tokenize", model="games", prompt="Why").status == 200


def test_what_belongs_to_the_format_is_each_adapter_s_own(replica: Replica) -> None:
    games, school = (asyncio.run(replica.adapter_info(name)) for name in ("games", "school"))
    assert games is not None
    assert school is not None
    assert Calibration.model_validate_json(games.calibration_json) == CALIBRATION
    assert Calibration.model_validate_json(school.calibration_json) == Calibration()
    assert games.base == school.base == "tiny"


def test_an_unknown_model_is_404_and_another_team_s_403(replica: Replica) -> None:
    app = app_of(replica, teams=OWN_TEAMS, keys=KEYS)
    unknown = ask(app, "key-all", model="game", **QUESTION)
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    assert "served: tiny, games, school" in unknown.json["error"]["message"]
    for path, fields in (
        ("/v1/chat/completions", QUESTION),
        ("/v1/completions", {"prompt": "Why", "max_tokens": 2}),
        ("/v1/responses", {"input": "Why?"}),
        ("/tokenize", {"prompt": "Why"}),
    ):
        for named in ("school", "school:education", "tiny"):
            refused = ask(app, "key-games", path, model=named, **fields)
            assert (refused.status, refused.json["error"]["code"]) == (403, "model_forbidden"), (path, named)
            assert "team 'games' may not use model" in refused.json["error"]["message"]
    assert text(ask(app, "key-games", **QUESTION)) == text(ask(app, "key-all", model="games", **QUESTION)), "its own"
    listed = get(app, "/v1/models", key="key-games").json["data"]
    assert {row["root"] for row in listed} == {"games"}
    assert get(app, "/v1/models/school", key="key-games").status == 403
    assert get(app, "/v1/attributes", key="key-games").json["model"] == "games"
    hidden = ask(app, "key-games", model="game", **QUESTION).json["error"]["message"]
    assert "school" not in hidden
    lost = ask(app, "key-lost", **QUESTION)
    assert (lost.status, lost.json["error"]["code"]) == (403, "model_forbidden")


def test_an_adapter_comes_changes_and_goes(located: Located, root: Path) -> None:
    replica = replica_of(replace(located, adapters={}))
    games, school = str(root / "games"), str(root / "school")
    named = replace(REQUEST, adapter="team")

    async def go() -> list[str]:
        gone = [event async for event in replica.generate(named)]
        assert isinstance(gone[0], Failed)
        assert (gone[0].status, gone[0].code) == (404, "model_not_found")
        info = await replica.swap_adapter("team", Revision(games, 1))
        assert info is not None
        assert (info.policy, info.base) == (games, "tiny")
        found = [await collected(replica, named)]
        async with aclosing(replica.generate(replace(named, sampling=replace(REQUEST.sampling, max_tokens=60)))) as old:
            assert isinstance(await anext(old), Started)
            await replica.swap_adapter("team", Revision(school, 3))
            assert (await replica.swap_adapter("team", Revision(games, 2))).policy == school  # type: ignore[union-attr]
            found.append(await collected(replica, named))
            await replica.swap_adapter("team", Revision("", 4))
            found.append("".join([event.text async for event in old if isinstance(event, Delta)]))
        late = replace(named, revision=Revision(games, 5))  # of an ingress that knows more than this replica
        found.append(await collected(replica, late))
        assert await replica.swap_adapter("team", Revision("", 6)) is None
        over = [event async for event in replica.generate(late)]
        assert isinstance(over[0], Failed)
        return found

    first, changed, running, again = asyncio.run(go())
    assert first == again == merged(root / "games", root)[1]
    assert changed == merged(root / "school", root)[1]
    assert running.startswith(first[:8]), "it ended on what it began with"
    replica._loaded.engine.close()


def test_a_policy_that_the_adapters_were_not_trained_on_cannot_take_over(
    located: Located, replica: Replica, root: Path
) -> None:
    other = locate(str(root / "games"), str(root / "runs")).uri
    with pytest.raises(UserError, match=r"adapter games was trained on .* and the served policy has"):
        asyncio.run(replica.swap(Revision(other, 1)))
    assert asyncio.run(replica.info()).policy == located.uri
    assert asyncio.run(collected(replica, replace(REQUEST, adapter="games")))


def test_an_adapter_with_other_attributes_does_not_replace_one(located: Located, root: Path) -> None:
    replica = replica_of(located)
    other = LAB.model_copy(update={"name": "half", "attributes": LAB.attributes[:2]})
    folder = exported_adapter(str(root / "base"), root / "half", 3, schema=other)
    before = asyncio.run(collected(replica, replace(REQUEST, adapter="games")))
    with pytest.raises(UserError, match="has attribute schema"):
        asyncio.run(replica.swap_adapter("games", Revision(folder, 1)))
    assert asyncio.run(collected(replica, replace(REQUEST, adapter="games"))) == before
    info = asyncio.run(replica.swap_adapter("half", Revision(folder, 1)))
    assert info is not None, "under a name of its own it may"
    assert ServedPolicy(info).schema.names == other.names
    replica._loaded.engine.close()


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"adapters": {"a": "x"}, "models": [{"name": "b", "policy": "y"}]}, "beside one policy, and models lists"),
        ({"adapters": {"a:b": "x"}}, "pattern"),
        ({"policy": "base"}, "there are none: set adapters"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, object], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ServeSettings.model_validate(fields)


def test_the_command_says_which_adapters_there_are_and_which_models_of_teams_are_not(
    settings: ServeSettings,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Located] = []

    def serve(_: ServeSettings, models: Sequence[Located], predictor: str | None) -> int:
        started.extend(models)
        return 0

    monkeypatch.setattr("serve.__main__._serve", serve)
    keys = tmp_path / "keys.txt"
    keys.write_text(KEYS.splitlines()[0])
    adapters = ", ".join(f"{name}: {folder}" for name, folder in settings.adapters.items())
    words = ["policy=base", "name=tiny", f"adapters={{{adapters}}}", f"storage={settings.storage}", f"keys={keys}"]
    assert main([*words, f"port={free_port()}", "teams=[{name: games, models: [games, june]}]"]) == 0
    printed = capsys.readouterr().out
    assert f"serve: adapter games of tiny from {root / 'games'}" in printed
    assert "serve: team games may use model june, which is not served yet" in printed
    assert started[0].adapters == settings.adapters


def test_a_folder_without_an_adapter_and_a_name_twice_are_sentences(settings: ServeSettings, root: Path) -> None:
    wrong = settings.model_copy(update={"adapters": {"games": str(root / "base")}})
    with pytest.raises(UserError, match=r"adapter games: no exported adapter at .*base; write one with `python -m"):
        locate_all(wrong)
    with pytest.raises(UserError, match="which is the policy's own name: set name to another"):
        locate_all(settings.model_copy(update={"name": "games"}))
    assert locate_all(settings)[0] == locate_all(settings)[0]
