"""Every number in every settings record has a range; what is outside is one sentence with setting, value and range."""

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from actors.modeling.settings import SmallModel
from cluster.settings.errors import SettingsError
from cluster.settings.help import number_allowed
from cluster.settings.load import load
from jobs.ablate import Ablation
from jobs.answer import Answering
from jobs.bench.__main__ import BENCHES
from jobs.export import Export
from jobs.judging.settings import Judging
from jobs.planning.settings import ScalePlan
from jobs.runner.preset import Preset
from serve.profiles import Profile
from serve.settings import ServeSettings

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
CONFIG = str(Path(__file__).parent.parent / "serve" / "config.yaml")
RECORDS: Sequence[type[BaseModel]] = [
    *(Preset, Ablation, Answering, Export, Judging, ScalePlan, ServeSettings, Profile),
    *(bench.settings for bench in BENCHES.values()),
]
UNBOUNDED: Mapping[str, str] = {}
"""Setting -> why it needs no lower bound."""

Number = tuple[str, Any]
"""Dotted name, annotated type."""


def numbers(record: type[BaseModel], prefix: str = "", above: tuple[type, ...] = ()) -> Iterator[Number]:
    """Every int and float in the record and below."""
    if record not in above:
        for name, field in record.model_fields.items():
            yield from _numbers(field.annotation, field.metadata, f"{prefix}{name}", (*above, record))


def _numbers(annotation: Any, rules: Sequence[Any], name: str, above: tuple[type, ...]) -> Iterator[Number]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _numbers(inner[0], [*inner[1:], *rules], name, above)
    elif annotation in (int, float):
        yield name, (Annotated[annotation, *rules] if rules else annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from numbers(annotation, f"{name}.", above)
    elif origin in (Union, types.UnionType):
        for part in inner:
            yield from _numbers(part, rules, name, above)
    elif origin in (dict, list, tuple, Mapping, Sequence):
        for part in inner[-1:] if origin in (dict, Mapping) else inner[:1]:
            yield from _numbers(part, (), f"{name}.N", above)


EVERY = {f"{record.__name__}.{name}": kind for record in RECORDS for name, kind in numbers(record)}


def test_the_walk_sees_numbers_at_any_depth() -> None:
    for name in (
        "Preset.bootstrap.learner.lora.rank",
        "Preset.predictor.pair_weights.N",
        "Preset.rows.sources.N.limit",
        "Preset.rows.lab.held_out.N.N",
        "Preset.attributes.attributes.N.low",
        "ServeSettings.teams.N.tokens_per_minute",
        "Judging.judge.temperature",
        "ScalePlan.machines.overlap",
        "TrainBenchSettings.model.num_heads",
    ):
        assert name in EVERY
    assert len(EVERY) > 400


def test_every_number_refuses_true_nan_inf_and_what_is_huge_or_far_below_zero() -> None:
    accepted = [
        f"{name}: {value}"
        for name, kind in EVERY.items()
        for value in (True, math.nan, math.inf, -math.inf, 10**18, -(10**18))
        if name not in UNBOUNDED and _accepts(kind, value)
    ]
    assert accepted == []


def test_only_weights_and_values_on_a_scale_may_be_negative() -> None:
    below_zero = {name.rpartition(".")[2] for name, kind in EVERY.items() if _accepts(kind, -1)}
    assert below_zero == {"low", "high", "default", "leading_at_least", "N"}
    maps = {name.removesuffix(".N").rpartition(".")[2] for name, kind in EVERY.items() if _accepts(kind, -1)}
    assert maps & {"weights", "pair_weights"} == {"weights", "pair_weights"}
    assert not maps & {"source_weights", "attribute_weights", "min_quantile"}


def test_the_walk_would_find_a_number_without_bounds() -> None:
    class Loose(BaseModel):
        size: int
        share: float | None = None
        sizes: dict[str, tuple[int, ...]] = {}

    assert [name for name, kind in numbers(Loose) if _accepts(kind, -1)] == ["size", "share", "sizes.N.N"]


def _accepts(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def problem(record: type[BaseModel], path: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(record, path, overrides)
    said = str(caught.value)
    assert len(said) <= 400
    assert "\n" not in said
    return said


@pytest.mark.case("24-settings-without-bounds")
@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("base.small.num_heads=0", "a whole number from 1 to 1,000,000"),
        ("base.small.hidden_size=0", "a whole number from 1 to 1,000,000"),
        ("base.small.hidden_size=-32", "a whole number from 1 to 1,000,000"),
        ("base.small.num_layers=0", "a whole number from 1 to 1,000"),
        ("ray.num_cpus=-3", "a whole number from 1 to 100,000"),
        ("ray.object_store_mb=0", "a whole number from 80 to 100,000,000"),
        ("policy.learner.cpus_per_worker=-1", "a number from 0 to 100,000"),
        ("policy.learner.cpus_per_worker=.nan", "a number from 0 to 100,000"),
        pytest.param("policy.learner.cpus_per_worker=true", "a number", marks=pytest.mark.case("C15: true")),
        pytest.param("base.num_parameters=-1", "from 1 to", marks=pytest.mark.case("C15: a size below zero")),
        pytest.param("base.small.num_layers=1e999", "a whole number", marks=pytest.mark.case("C15: infinite")),
        pytest.param("rows.lab.num_rows=1e15", "from 1 to", marks=pytest.mark.case("C15: huge")),
        pytest.param("bootstrap.rounds=1000000", "from 0 to 1,000", marks=pytest.mark.case("C15: many rounds")),
        pytest.param("seed=-1", "from 0 to 4,294,967,295", marks=pytest.mark.case("C15: a seed below zero")),
        pytest.param("policy.learner.learning_rate=.inf", "greater than 0", marks=pytest.mark.case("C15: infinite")),
        pytest.param("sampling.top_p=.nan", "greater than 0 and at most 1", marks=pytest.mark.case("C15: nan")),
        pytest.param("annotate.pool.gpus_per_actor=1.5", "a share from 0 to 1", marks=pytest.mark.case("C15: GPUs")),
        pytest.param(
            "predictor.pair_weights={helpfulness: .inf}", "-1e+06 to 1e+06", marks=pytest.mark.case("C15: map")
        ),
        pytest.param("policy.source_weights={lab: -1}", "from 0 to 1,000", marks=pytest.mark.case("C15: map")),
    ],
)
def test_a_number_out_of_range_is_one_sentence_with_its_range(override: str, allowed: str) -> None:
    said = problem(Preset, DEMO, override)
    key = override.partition("={")[0].partition("=")[0]
    assert said.startswith(key)
    assert "got " in said
    assert "on the command line; allowed: " in said
    assert allowed in said.partition("; allowed: ")[2]


@pytest.mark.case("24-settings-without-bounds")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["base.small.hidden_size=33"], "hidden_size 33 does not give each of num_heads 4 an even width"),
        (["base.small.hidden_size=36"], "hidden_size 36 does not give each of num_heads 4 an even width"),
        (["base.small.num_kv_heads=3"], "num_heads 4 is no multiple of num_kv_heads 3"),
        (["base.small.num_kv_heads=8"], "num_heads 4 is no multiple of num_kv_heads 8"),
        (["policy.learner.max_tokens=4096"], "max_tokens 4096 must not exceed pack_tokens 512"),
        (["bootstrap.leading_at_least=9"], "leading_at_least is 9, outside the scale of helpfulness, 0 to 4"),
        (["bootstrap.selection={min_words: 5, max_words: 2}"], "max_words 2 is less than min_words 5"),
    ],
)
def test_numbers_that_do_not_go_together_are_named(overrides: list[str], said: str) -> None:
    assert said in problem(Preset, DEMO, *overrides)


def test_a_model_of_an_allowed_shape_can_be_made() -> None:
    from transformers import LlamaConfig

    for heads, kv_heads, width in ((1, 1, 2), (4, 2, 128), (6, 2, 192), (6, 3, 12)):
        small = SmallModel(hidden_size=width, num_heads=heads, num_kv_heads=kv_heads)
        LlamaConfig(hidden_size=width, num_attention_heads=small.num_heads, num_key_value_heads=small.num_kv_heads)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("port=0", "a whole number from 1 to 65,535"),
        ("num_gpus=2.5", "a share from 0 to 1, or a whole number of GPUs"),
        ("drain_s=.inf", "a number from 0 to 1e+08"),
        ("object_store_bytes=1", "a whole number from 83,886,080 to 1,000,000,000,000"),
        ("scorer.max_tokens=9999", "max_tokens 9999 must not exceed pack_tokens 2048"),
    ],
)
@pytest.mark.case("C15: the endpoint's numbers")
def test_the_endpoints_numbers(override: str, said: str) -> None:
    assert said in problem(ServeSettings, CONFIG, override)


def test_the_range_of_a_number_in_a_list_a_mapping_and_a_union() -> None:
    for path, range in {
        "rows.sources.0.limit": "a whole number from 0 to 1,000,000,000,000",
        "bootstrap.selection.min_quantile.quality": "a number greater than 0 and less than 1",
        "attributes.attributes.3.low": "a whole number from -1,000 to 1,000",
        "run": "",
        "rows.nothing": "",
    }.items():
        assert number_allowed(Preset, path.split(".")) == range


def test_no_field_narrows_a_type_that_has_a_range() -> None:
    """pydantic would keep the type's bound, not the narrower one."""
    twice = [
        name
        for name, kind in EVERY.items()
        if sum(hasattr(rule, "ge") or hasattr(rule, "gt") for rule in _flat(kind.__metadata__)) != 1
    ]
    assert twice == []


def _flat(rules: Sequence[Any]) -> Iterator[Any]:
    for rule in rules:
        yield from rule.metadata if isinstance(rule, FieldInfo) else [rule]
