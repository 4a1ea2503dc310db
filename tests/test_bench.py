"""Each bench with tiny numbers: the shape of what it prints, and that the two sides agree; never how fast they are."""

import json
from pathlib import Path

import pytest

from actors.kernels.devices import own_device
from actors.kernels.precision import why_not_bf16
from jobs.bench.__main__ import BENCHES, main
from jobs.bench.environment import NoEnvironment, environment
from jobs.bench.report import Disagreement, cpu_seconds_by_turns, ratio_of, require_equal
from jobs.bench.train_sides import TRL_SFT

TINY = (
    "hidden_size=32",
    "num_layers=2",
    "num_heads=4",
    "num_kv_heads=2",
    "intermediate_size=64",
    "vocab_size=600",
    "max_tokens=512",
)
RATIOS = {
    "annotate": {"vs_pipeline_batched", "vs_pipeline_single", "bf16_vs_fp32"},
    "turns": {"vs_prefixes"},
    "annotate_scale": {"job_vs_kernel", "two_vs_one_actor", "memory_growth", "time_growth"},
    "pieces": {"memory_growth", "starts_per_actor"},
    "prepare": {"vs_serial", "two_vs_one_worker", "memory_growth", "vs_datasets_map"},
    "sample": {"vs_single", "vs_static"},
    "serve": {"endpoint_vs_engine", "vs_transformers_serve", "vs_single", "five_settings_prefill"},
    "train": {"vs_trl_padded", "vs_trl_packed", "bf16_vs_fp32", "two_vs_one_worker", "memory_growth"},
}
SLOW = ("annotate_scale", "pieces", "prepare", "serve", "train")
"""They start servers, install TRL, run the job many times."""
LIMITS = ("pack_tokens=512", "max_tokens=300")
WORDS = {
    "annotate": ("rows=6", "rounds=1", "batch_size=4", *LIMITS, *(f"model.{t}" for t in TINY)),
    "turns": ("rows=3", "rounds=1", "pack_tokens=512", *(f"model.{t}" for t in TINY)),
    "annotate_scale": (
        "rows=12",
        "scale_rows=8",
        "times=2",
        "batch_rows=4",
        "rows_per_file=6",
        *LIMITS,
        *(f"{m}.{t}" for m in ("model", "scale_model") for t in TINY),
    ),
    "pieces": ("pieces=40", "small=10", "simulated=500", "pieces_per_file=8"),
    "prepare": ("rows=60", "rounds=1", "times=2", "split_bytes=9000", "rows_per_file=25"),
    "sample": ("rows=4", "in_flight=2", "rounds=1", "mean_tokens=4", "max_tokens=12", *(f"model.{t}" for t in TINY)),
    "serve": (
        "clients=2",
        "requests=3",
        "answer_tokens=4",
        "rounds=1",
        "streams=[5]",
        "vllm=nowhere",
        *(f"model.{t}" for t in TINY),
    ),
    "train": (
        "rows=16",
        "held=4",
        "rounds=1",
        "worker_rows=16",
        "memory_rows=8",
        "times=2",
        *LIMITS,
        *(f"model.{t}" for t in TINY),
    ),
}


@pytest.mark.ray
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RATIOS],
)
def test_a_bench_ends_with_one_json_line_of_ratios(
    name: str, real_data: Path, ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert RATIOS.keys() == BENCHES.keys()
    main([name, *WORDS[name]])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last) == {"bench", "machine", "ratios", "figures"}
    assert last["bench"] == name
    left_out = {"bf16_vs_fp32"} if why_not_bf16(own_device()) else set()  # on a CPU without arithmetic for it
    assert set(last["ratios"]) == RATIOS[name] - left_out
    assert all(isinstance(ratio, float) and ratio > 0 for ratio in last["ratios"].values())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["anotate"], 2, "did you mean annotate"),
        (["annotate", "row=3"], 2, "rows"),
        (["annotate"], 1, "set STEERLM_REAL_DATA to the folder that holds oasst_model_eval_20k"),
    ],
)
def test_a_user_error_is_one_sentence(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STEERLM_REAL_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


def test_help_lists_benches_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHES)
    main(["turns", "--help"])
    assert "model.hidden_size" in capsys.readouterr().out


def test_sides_that_differ_are_not_compared() -> None:
    require_equal(1e-6, 1e-5, "ours against theirs")
    for difference in (1e-4, float("nan")):
        with pytest.raises(Disagreement, match="ours against theirs: scores differ by"):
            require_equal(difference, 1e-5, "ours against theirs")


def test_an_environment_that_cannot_be_installed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoEnvironment, match="no-such-package-at-all could not be installed into"):
        environment(tmp_path / "venv", "no-such-package-at-all")


def test_the_program_of_the_trl_side_exists() -> None:
    assert TRL_SFT.is_file()


def test_ways_take_turns_and_the_ratio_is_the_median_of_rounds() -> None:
    order: list[str] = []
    seconds = cpu_seconds_by_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
    assert ratio_of({"ours": [1.0, 2.0, 1.0], "theirs": [2.0, 6.0, 9.0]}, "ours", "theirs") == 3.0
