"""Two adapters and their base in one engine: the answers of the merged models, one set of weights, no shared prefix."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.adapters import base_policy, exported_adapter
from support.chat_base import chat_base
from support.engine_listener import Recorder

from actors.generation.protocol import GenerationStep, Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.adapter import put_together
from actors.modeling.adapter_weights import adapter_text
from actors.modeling.policy import Policy
from data.adapter_layout import ADAPTER
from data.conversation import Message
from data.errors import UserError

NAMES = ("", "games", "school")
WORDS = ["bees", "guard ships and dance", "a", "ships " * 40, "why"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> exported adapter; "" -> the base as a policy."""
    root = tmp_path_factory.mktemp("adapters")
    base = chat_base(str(root / "base"), hidden_size=128)
    made = {name: exported_adapter(base, root / name, seed, rank=2) for seed, name in enumerate(NAMES) if name}
    return {"": base_policy(made["games"], root / "served"), **made}


@pytest.fixture(scope="module")
def merged(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    """The same three models, each whole."""
    found = {"": Policy.load(folders[""])}
    for name in NAMES[1:]:
        folder = tmp_path_factory.mktemp(f"merged-{name}")
        put_together(folders[name], str(folder))
        found[name] = Policy.load(str(folder / "policy"))
    return found


@pytest.fixture(scope="module")
def engine(folders: dict[str, str]) -> Iterator[TransformersEngine]:
    made = TransformersEngine(Policy.load(folders[""]), max_num_seqs=4, prefix_cache_tokens=4000)
    for name in NAMES[1:]:
        made.put_adapter(name, folders[name])
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(merged: dict[str, Policy]) -> dict[str, list[list[int]]]:
    """Name -> the greedy answer to each prompt, by its merged model in an engine of its own."""
    found = {}
    for name, policy in merged.items():
        own = TransformersEngine(policy, max_num_seqs=1)
        found[name] = [ids for ids, _ in complete(own, [(prompt, greedy()) for prompt in prompts(policy)])]
        own.close()
    return found


def prompts(policy: Policy) -> list[list[int]]:
    asked = [[Message("user", f"Tell me about {words}.")] for words in WORDS]
    return [policy.prompt("", messages, {"humor": i % 5}) for i, messages in enumerate(asked)]


def greedy(name: str = "", max_tokens: int = 24) -> Sampling:
    return Sampling(max_tokens, temperature=0, ignore_eos=True, adapter=name)


def test_a_mixed_batch_answers_as_the_merged_models_one_by_one(
    engine: TransformersEngine, merged: dict[str, Policy], alone: dict[str, list[list[int]]]
) -> None:
    assert len({str(answers) for answers in alone.values()}) == 3, "the adapters change what is written"
    asked = prompts(merged[""])
    assert all(prompts(policy) == asked for policy in merged.values())
    requests = [(ids, greedy(name)) for ids in asked for name in NAMES]
    for _ in range(2):  # the second time every prompt begins in the prefix cache
        answers = [ids for ids, _ in complete(engine, requests)]
        assert answers == [alone[name][i] for i in range(len(asked)) for name in NAMES]
    assert engine.load.reused_tokens >= sum(len(ids) - 1 for ids in asked) * len(NAMES)


def test_logits_are_those_of_the_merged_models_to_rounding(
    engine: TransformersEngine, merged: dict[str, Policy]
) -> None:
    prompt = prompts(merged[""])[1]
    for name in NAMES:
        own = Sampling(6, temperature=0, ignore_eos=True, adapter=name, logprobs=3, prompt_logprobs=0)
        [here, whole] = [Recorder(), Recorder()]
        engine.submit(prompt, own, here)
        single = TransformersEngine(merged[name], max_num_seqs=1)
        single.submit(prompt, Sampling(6, temperature=0, ignore_eos=True, logprobs=3, prompt_logprobs=0), whole)
        assert here.ended.wait(30)
        assert whole.ended.wait(30)
        single.close()
        found, expected = ([p for step in r.steps for p in step.logprobs or []] for r in (here, whole))
        assert [p.logprob for p in found] == pytest.approx([p.logprob for p in expected], abs=1e-3)
        of_prompt = [[p.logprob for p in r.steps[0].prompt_logprobs or [] if p] for r in (here, whole)]
        assert of_prompt[0] == pytest.approx(of_prompt[1], abs=1e-3)


def test_prompts_of_adapters_share_no_prefix(folders: dict[str, str]) -> None:
    engine = TransformersEngine(Policy.load(folders[""]), max_num_seqs=1, prefix_cache_tokens=4000)
    for name in NAMES[1:]:
        engine.put_adapter(name, folders[name])
    prompt = [5] * 60

    def reused(name: str) -> int:
        before = engine.load.reused_tokens
        complete(engine, [(prompt, greedy(name, 2))])
        return engine.load.reused_tokens - before

    assert [reused(name) for name in (*NAMES, *NAMES)] == [0, 0, 0, 59, 59, 59]
    engine.put_adapter("games", folders["games"])
    assert reused("games") == 0, "another version of it has keys and values of its own"
    engine.close()


def test_streams_of_all_three_interleave_and_one_may_be_cancelled(
    engine: TransformersEngine, merged: dict[str, Policy], alone: dict[str, list[list[int]]]
) -> None:
    asked, order = prompts(merged[""]), []
    recorders = {name: Recorder() for name in NAMES}

    def listener(name: str) -> object:
        def listen(step: GenerationStep) -> None:
            order.append(name)
            recorders[name](step)

        return listen

    gone = Recorder()
    *_, number = engine.submit_all(
        [
            *((asked[0], greedy(name), listener(name)) for name in NAMES),  # type: ignore[list-item]
            (asked[1], greedy("school", 400), gone),
        ]
    )
    engine.cancel(number)
    assert all(recorder.ended.wait(30) for recorder in (*recorders.values(), gone))
    assert gone.steps[-1] == GenerationStep([], "cancelled")
    for name in NAMES:
        assert [i for step in recorders[name].steps for i in step.token_ids] == alone[name][0]
    assert order[:6] != sorted(order[:6]), "they run side by side"


def test_seeds_are_each_row_s_own(engine: TransformersEngine, merged: dict[str, Policy]) -> None:
    asked = prompts(merged[""])
    drawn = [
        (asked[i], Sampling(20, temperature=0.9, top_k=30, seed=i, adapter=name))
        for i, name in enumerate(("games", "", "school", "games"))
    ]
    together = complete(engine, drawn)
    assert together == [complete(engine, [request])[0] for request in drawn]


def test_guidance_leads_an_adapter_s_answer_within_the_adapter(
    engine: TransformersEngine, merged: dict[str, Policy]
) -> None:
    prompt, away = prompts(merged[""])[:2]
    own = Sampling(12, temperature=0, ignore_eos=True, guidance=2.0, unguided_ids=tuple(away))
    single = TransformersEngine(merged["games"], max_num_seqs=2)
    [(expected, _)] = complete(single, [(prompt, own)])
    single.close()
    named = Sampling(12, temperature=0, ignore_eos=True, guidance=2.0, unguided_ids=tuple(away), adapter="games")
    assert complete(engine, [(prompt, named), (prompt, greedy())])[0][0] == expected


def test_one_set_of_weights_is_in_memory(engine: TransformersEngine, merged: dict[str, Policy]) -> None:
    def num_bytes(tensors: list[torch.Tensor]) -> int:
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    base = num_bytes(list(merged[""].model.parameters()))
    loaded = [adapter.weights for adapter in engine._adapters.values()]
    served = num_bytes([*engine._model.parameters(), *(t for weights in loaded for t in weights._tensors())])
    assert len(loaded) == 2
    assert base < served < 1.10 * base, f"{served / base:.3f} of the base"
    print(f"two adapters and the base: {served / base:.3f} of the base's {base:,} bytes")
    assert {name for name, _ in engine._model.named_parameters()} == {
        name for name, _ in merged[""].model.named_parameters()
    }


def test_an_adapter_comes_changes_and_goes_and_running_answers_keep_theirs(
    folders: dict[str, str], alone: dict[str, list[list[int]]], merged: dict[str, Policy]
) -> None:
    engine, asked = TransformersEngine(Policy.load(folders[""]), max_num_seqs=4), prompts(merged[""])
    with pytest.raises(UserError, match="there is no adapter 'team' here; there are none"):
        engine.submit(asked[0], greedy("team"), Recorder())
    engine.put_adapter("team", folders["games"])
    long, base = Recorder(), Recorder()
    engine.submit(asked[0], greedy("team", 300), long)
    engine.submit(asked[0], greedy("", 300), base)
    assert long.started.wait(20)
    engine.put_adapter("team", folders["school"])
    assert complete(engine, [(asked[0], greedy("team"))])[0][0] == alone["school"][0]
    engine.remove_adapter("team")
    with pytest.raises(UserError, match="no adapter 'team'"):
        engine.submit(asked[0], greedy("team"), Recorder())
    assert not long.ended.is_set()
    assert long.ended.wait(60)
    written = [i for step in long.steps for i in step.token_ids]
    assert written[:24] == alone["games"][0]
    single = TransformersEngine(merged["games"], max_num_seqs=1)
    assert complete(single, [(asked[0], greedy("", 300))])[0][0] == written, "to its end"
    for one in (engine, single):
        one.close()


def test_what_was_not_trained_on_these_weights_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    other = chat_base(str(tmp_path / "other"), hidden_size=64)
    stranger = exported_adapter(other, tmp_path / "stranger", 5)
    engine = TransformersEngine(Policy.load(folders[""]), max_num_seqs=1)
    own, theirs = (
        json.loads((Path(folder) / ADAPTER).read_text())["base_weights"] for folder in _both(folders, stranger)
    )
    with pytest.raises(UserError, match=rf"adapter x was trained on .*other with the weights {theirs}.* has {own}"):
        engine.put_adapter("x", stranger)
    with pytest.raises(UserError, match=r"adapter x: .*nowhere has no steerlm_adapter.json.*what=adapter to=FOLDER"):
        engine.put_adapter("x", str(tmp_path / "nowhere"))
    old = tmp_path / "old"
    old.mkdir()
    record = json.loads((Path(stranger) / ADAPTER).read_text())
    (old / ADAPTER).write_text(json.dumps(record | {"base_weights": ""}))
    with pytest.raises(UserError, match="without a fingerprint of its base: export it again"):
        engine.put_adapter("x", str(old))
    engine.close()


def _both(folders: dict[str, str], stranger: str) -> tuple[str, str]:
    return folders["games"], stranger


def test_a_merged_policy_is_another_base(merged: dict[str, Policy], folders: dict[str, str]) -> None:
    engine = TransformersEngine(merged["games"], max_num_seqs=1)
    with pytest.raises(UserError, match="train the adapter on the policy that is served"):
        engine.put_adapter("school", folders["school"])
    engine.close()


def test_another_prompt_format_is_refused_by_name(folders: dict[str, str], tmp_path: Path) -> None:
    base = str(Path(folders["games"]).parent / "base")
    chat = exported_adapter(base, tmp_path / "chat", 3, kind="chat")
    served = Policy.load(folders[""])
    with pytest.raises(UserError, match=r"adapter x has the template chat, and the served policy words: train"):
        adapter_text("x", chat, served)
    assert adapter_text("games", folders["games"], served).stop_ids == served.stop_ids


def test_the_base_in_bfloat16_is_the_same_base(folders: dict[str, str]) -> None:
    for dtype in ("bfloat16", "float16"):
        engine = TransformersEngine(Policy.load(folders[""], dtype), max_num_seqs=1)
        engine.put_adapter("games", folders["games"])
        started = time.monotonic()
        assert complete(engine, [([5] * 8, greedy("games", 4))])[0][1] == "length"
        assert time.monotonic() - started < 30
        engine.close()
