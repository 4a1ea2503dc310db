"""A training says which labels its policy reads, the same whatever the number of workers."""

from pathlib import Path

import pytest

from actors.modeling.policy import PolicyTask
from actors.training.examples import ExampleSpec, PolicyExamples
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.examples import Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.policy_training.label_probes import label_probes

SCHEMA = shipped("lab")
SPLIT = Split(buckets=4)


@pytest.fixture
def maker(tiny_base: str) -> PolicyExamples:
    return PolicyExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256), "human", Calibration(), 0.0, 0)


def test_probes_are_held_out_answers_with_the_labels_of_one_attribute_changed(
    maker: PolicyExamples, tmp_path: Path
) -> None:
    rows = list(Lab(LabSettings(num_rows=200, rated_share=1)).rows())
    folder = Storage(str(tmp_path))
    write_table(to_table(rows, SCHEMA), folder)
    found = label_probes(maker, [folder], SPLIT, 20)
    assert len(found) == 20
    held_out = {tuple(maker.tokens(r, r.human).ids_T) for r in rows if SPLIT.validates(r.group)}
    assert all(tuple(probe.own.ids_T) in held_out for probe in found)
    changed = [(probe, name, other) for probe in found for name, other in probe.shuffled.items()]
    assert {name for _, name, _ in changed} == set(SCHEMA.names)
    for probe, name, other in changed:
        own, shuffled = (maker.format.tokenizer.decode(e.ids_T) for e in (probe.own, other))
        assert own != shuffled
        assert [a.split(",") for a in own.split("\n")] != [a.split(",") for a in shuffled.split("\n")]
        assert own.replace(f"{name}:", "").count(":") == shuffled.replace(f"{name}:", "").count(":")
    assert label_probes(maker, [folder], SPLIT, 0) == []


@pytest.mark.slow
@pytest.mark.ray
def test_one_worker_or_two_measure_the_same(
    ray_cluster: object, maker: PolicyExamples, tiny_base: str, tmp_path: Path
) -> None:
    rows = list(Lab(LabSettings(num_rows=120, rated_share=1)).rows())
    write_table(to_table(rows, SCHEMA), Storage(str(tmp_path)) / "rows")
    write_table(maker(to_table(rows, SCHEMA)), Storage(str(tmp_path)) / "examples")
    probes = label_probes(maker, [Storage(str(tmp_path)) / "rows"], SPLIT, 15)
    found = []
    for workers, stage in ((1, 0), (2, 3)):
        settings = LearnerSettings(
            num_workers=workers, zero_stage=stage, precision="fp32", pack_tokens=512, max_tokens=256, packs_per_step=2
        )
        training = fit(
            "policy",
            PolicyTask(tiny_base, SCHEMA, "steerlm"),
            settings,
            Corpus.of(Storage(str(tmp_path)) / "examples"),
            Storage(str(tmp_path)) / f"{workers}",
            SPLIT,
            probes=probes,
        )
        found.append(training.label_use)
    assert found[0].keys() == set(SCHEMA.names)
    for name, use in found[0].items():
        assert found[1][name].conversations == use.conversations
        assert found[1][name].nats == pytest.approx(use.nats, abs=2e-4)
