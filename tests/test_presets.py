"""The presets for GPUs: they fit the cards that they name, keep checkpoints, and place workers where they are safe."""

from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig

from actors.modeling.model_memory import GIB
from actors.training.memory import learner_device_bytes, training_memory
from cluster.preflight import ClusterNode
from cluster.settings.load import load
from jobs.runner.needs import needs
from jobs.runner.plan import refuse_what_cannot_fit
from jobs.runner.preset import Preset
from jobs.runner.shapes import Shapes
from jobs.runner.stage import Run
from jobs.runner.trainings import learners

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "jobs" / "presets"
MODELS = {
    "meta-llama/Llama-3.2-1B-Instruct": (1_235_814_400, (16, 2048, 32, 8, 8192, 128_256), 131_072),
    "meta-llama/Llama-3.1-8B-Instruct": (8_030_261_248, (32, 4096, 32, 8, 14_336, 128_256), 131_072),
    "meta-llama/Llama-2-13b-hf": (13_015_864_320, (40, 5120, 40, 40, 13_824, 32_000), 4096),
    # Its size is the paper's; width, depth and vocabulary are those of other models of this size.
    "YOUR-NAME/43b": (43_000_000_000, (48, 8192, 64, 64, 24_576, 256_000), 4096),
}
"""What the presets' models are: parameters; layers, width, heads, key and value heads, feed-forward, vocabulary;
context."""
CARDS_GIB = {"one_gpu": 79.0, "one_gpu_24gb": 22.0, "node_8gpu": 79.0, "cluster": 39.0, "llama2_13b": 39.0}
CARDS_GIB |= {"paper_43b": 79.0, "one_gpu_real": 79.0}
ON_NODES = ("cluster", "llama2_13b", "paper_43b")
SPARE = 0.3
"""Of a card. The formula leaves out what libraries take: copies in bf16, buckets, temporaries of the optimizer."""


def preset_of(name: str, folder: Path) -> Preset:
    """The preset with its model's configuration in a folder, as if it were downloaded, on the card that it is for."""
    plain = load(Preset, str(PRESETS / f"{name}.yaml"))
    assert plain.base.model
    num_parameters, (layers, width, heads, kv_heads, feed_forward, vocabulary), _ = MODELS[plain.base.model]
    assert plain.base.num_parameters == num_parameters
    LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=feed_forward, vocab_size=vocabulary, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    words = [f"base.model={folder}", f"storage={folder}"]
    words += [f"{path}.memory_gib={CARDS_GIB[name]}" for path in learners(plain)]
    pools = {"annotate.pool": plain.annotate.pool, "sampling.pool": plain.sampling.pool}
    words += [f"{path}.memory_gib={CARDS_GIB[name]}" for path, pool in pools.items() if pool.memory_gib is None]
    return load(Preset, str(PRESETS / f"{name}.yaml"), words)


def test_every_preset_for_gpus_is_here() -> None:
    found = {path.stem for path in PRESETS.glob("*.yaml") if load(Preset, str(path)).policy.learner.use_gpu}
    assert found == CARDS_GIB.keys()


@pytest.mark.parametrize("name", CARDS_GIB)
def test_it_fits_its_card_and_leaves_room(name: str, tmp_path: Path) -> None:
    preset = preset_of(name, tmp_path)
    refuse_what_cannot_fit(preset)
    shapes = Shapes.of(preset)
    for path, learner in learners(preset).items():
        shape, has_logits = shapes.of_training(path, preset)
        assert shape is not None
        memory, card = training_memory(shape, learner.fewest, has_logits), learner_device_bytes(learner)
        assert memory.knows_activations
        assert card is not None
        assert memory.total < (1 - SPARE) * card, f"{path}: {memory.total / GIB:.1f} of {card / GIB:.0f} GiB"


@pytest.mark.parametrize("name", CARDS_GIB)
def test_annotation_and_sampling_fit_a_card(name: str, tmp_path: Path) -> None:
    """Weights in bf16, and each slot's cache for the longest prompt that training saw and the longest answer."""
    preset = preset_of(name, tmp_path)
    num_parameters, (layers, width, heads, kv_heads, _, _), context = MODELS[
        load(Preset, str(PRESETS / f"{name}.yaml")).base.model or ""
    ]
    gib, parts = preset.sampling.pool.memory_gib, preset.sampling.engine.tensor_parallel
    assert gib is not None
    if name in ON_NODES and name != "paper_43b":
        assert gib == preset.annotate.pool.memory_gib == 44, "an L40S of 48 GB"
    assert preset.annotate.pool.dtype == preset.sampling.pool.dtype == "bfloat16"
    token = 2 * layers * kv_heads * (width // heads) * 2
    tokens = min(preset.policy.learner.max_tokens + preset.sampling.max_tokens, context)
    cache = preset.sampling.engine.max_num_seqs * tokens * token
    assert 2 * num_parameters + cache < 0.9 * parts * gib * GIB


@pytest.mark.parametrize("name", CARDS_GIB)
def test_an_hour_is_never_lost(name: str) -> None:
    for path, learner in learners(load(Preset, str(PRESETS / f"{name}.yaml"))).items():
        assert 0 < learner.checkpoint_every_s <= 900, path
        assert learner.max_failures > 0, path


@pytest.mark.parametrize("name", ON_NODES)
def test_on_nodes_all_are_placed_and_the_nodes_of_ray_cluster_yaml_can_hold_them(name: str) -> None:
    """Without labels a training worker of one GPU fits a spot node, whose end stops all workers."""
    types = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    roles = {t["labels"]["role"]: t for t in types.values() if "labels" in t}
    run = Run(load(Preset, str(PRESETS / f"{name}.yaml")))
    for demand in needs(run, ["predictor", "policy", "bootstrap-1/policy", "annotated", "samples"]).demands:
        role = demand.labels["role"]
        assert role == ("train" if demand.kind == "worker" else "annotate"), demand.what
        type_ = roles[role]
        node = ClusterNode(type_["resources"], type_["labels"])
        spot = "InstanceMarketOptions" in type_["node_config"]
        assert spot == (role == "annotate")
        if name != "paper_43b":
            assert demand.fit_on(node) * type_["max_workers"] >= demand.max_actors, demand.what
            assert demand.fit_on(node) >= min(demand.min_actors, 8), demand.what


def test_the_presets_are_documented_with_what_they_need() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in CARDS_GIB:
        assert f"| `{name}` |" in page, name
