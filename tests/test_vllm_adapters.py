"""What vLLM is told of adapters, by the names of its own records; with vLLM itself: `make test-vllm`."""

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.adapters import base_policy, exported_adapter
from support.chat_base import chat_base

from actors.generation.vllm_adapters import VllmAdapters, arguments
from actors.modeling.policy import PolicyText
from data.errors import UserError


def test_the_engine_has_a_place_more_than_adapters_and_a_rank_that_it_knows() -> None:
    expected: Mapping[tuple[int, ...], Mapping[str, object]] = {
        (): {},
        (4,): {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8},
        (16, 40): {"enable_lora": True, "max_loras": 3, "max_lora_rank": 64},
    }
    assert {ranks: arguments(ranks) for ranks in expected} == expected
    with pytest.raises(UserError, match="has rank 600, and vLLM takes 512 at most: export it with rank=512"):
        arguments((600,))


def test_a_request_names_an_adapter_that_no_other_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a base that has all tokens, as a policy of ours has."""

    @dataclass
    class LoRARequest:  # the fields that vLLM 0.32 requires
        lora_name: str
        lora_int_id: int
        lora_path: str

    module = types.ModuleType("vllm.lora.request")
    module.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for name, stub in {"vllm": None, "vllm.lora": None, "vllm.lora.request": module}.items():
        monkeypatch.setitem(sys.modules, name, stub or types.ModuleType(name))
    base = chat_base(str(tmp_path / "base"))
    first, third = (exported_adapter(base, tmp_path / f"on-base-{seed}", seed, kind="steerlm") for seed in (1, 3))
    served = base_policy(first, tmp_path / "served")
    second = exported_adapter(served, tmp_path / "second", 2, kind="steerlm")
    adapters = VllmAdapters(PolicyText.load(served), served, num_places=1)
    requests = [adapters.request("games", second), adapters.request("games", second)]
    assert requests == [LoRARequest("games-1", 1, second), LoRARequest("games-2", 2, second)]
    assert (Path(second) / "adapter_config.json").exists(), "peft's form, which vLLM reads"
    with pytest.raises(UserError, match=r"embeddings of its own for tokens that its base lacked.*kind to transformers"):
        adapters.request("games", third)
    without = VllmAdapters(PolicyText.load(served), served, num_places=0)
    with pytest.raises(UserError, match="vLLM was started without room for adapters; set adapters"):
        without.request("games", second)
