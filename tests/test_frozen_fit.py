"""Heads fitted by Ray Train's workers: as by hand, whatever their number; shared features; then trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.modeling.regressor import PredictorLoss, PredictorTask
from actors.modeling.ridge_choice import Labelled, fit_heads, group_folds
from actors.modeling.settings import HeadsSettings
from actors.scoring.predictor import Predictor
from actors.training.examples import ExampleSpec, PredictorExamples
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.conversation import to_table
from data.examples import Examples, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.storage import Storage
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")
FROZEN = LearnerSettings(epochs=0, num_workers=2, precision="fp32", pack_tokens=512, max_tokens=256, packs_per_step=2)
SPLIT = Split(4, 1)


def rated(base: str, folder: Path) -> Storage:
    target = Storage(str(folder)) / "examples"
    rows = list(Lab(LabSettings(num_rows=120)).rows())
    write_table(PredictorExamples(ExampleSpec(base, SCHEMA, "steerlm", 256))(to_table(rows, SCHEMA)), target)
    return target


def by_hand(module: PredictorLoss, task: PredictorTask, examples: Storage) -> tuple[torch.Tensor, torch.Tensor]:
    """The heads' weights by features of one example at a time, and these features."""
    everything = Examples(examples.tables())
    chosen = [i for i, group in enumerate(everything.groups) if SPLIT.trains(group)]
    features, values, weights, groups = [], [], [], []
    with torch.no_grad():
        for i in chosen:
            inputs = task.inputs([everything[i]], "cpu")
            features.append(module.read(inputs["pack"], inputs["reads_S"], inputs["starts_S"])[:, :-1])
            values.append(inputs["values_SA"])
            weights.append(inputs["weights_SA"])
            groups += [everything.groups[i]] * len(features[-1])
    folds_N = torch.from_numpy(group_folds(groups, 0))
    assert module.reader is not None
    labelled = Labelled(torch.cat(features), torch.cat(values), torch.cat(weights), folds_N)
    weights_AF = fit_heads(labelled, module.reader.heads, False).weights_AF
    return weights_AF, torch.cat([labelled.features_NF, torch.ones(len(folds_N), 1)], 1)


@pytest.mark.slow
@pytest.mark.ray
def test_the_workers_fit_what_one_fits_alone_and_share_features(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    examples, root = rated(tiny_base, tmp_path), Storage(str(tmp_path))
    heads = HeadsSettings(layers=(1, 2), readings=("end", "mean"))
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", layer_heads=heads)
    corpus, features = Corpus.of(examples), root / "features"
    metrics = fit("test", task, FROZEN, corpus, root / "out", SPLIT, features=features)
    assert (metrics.steps, metrics.num_workers) == (0, 2)
    assert metrics.tokens > 0
    assert set(metrics.heads) == set(SCHEMA.names)
    saved = Predictor.load((root / "out" / "model").uri).module
    weights_AF, features_NF = by_hand(task.build().eval(), task, examples)
    # Many weights give the same scores: a random backbone's features are nearly dependent.
    found_NA = features_NF @ saved.model.score.weight.data.T
    torch.testing.assert_close(found_NA, features_NF @ weights_AF.T, atol=2e-3, rtol=2e-3)

    alone = FROZEN.model_copy(update={"num_workers": 1})
    again = fit("test", task, alone, corpus, root / "again", SPLIT, features=features)
    assert again.tokens == 0, "all features were there"
    same = Predictor.load((root / "again" / "model").uri).module
    torch.testing.assert_close(same.model.score.weight.data, saved.model.score.weight.data)
    other = fit("test", task, alone, corpus, root / "other", Split(4, 2), features=features)
    assert 0 < other.tokens < metrics.tokens, "only the examples that the first fit held out"


@pytest.mark.slow
@pytest.mark.ray
def test_a_training_starts_from_the_fitted_heads(ray_cluster: object, tiny_base: str, tmp_path: Path) -> None:
    examples, root = rated(tiny_base, tmp_path), Storage(str(tmp_path))
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", layer_heads=HeadsSettings(layers=(1,), readings=("mean",)))
    fit("test", task, FROZEN, Corpus.of(examples), root / "heads", SPLIT)
    start = replace(task, base=(root / "heads" / "model").uri, layer_heads=None)
    for lora in (None, {"rank": 2}):
        settings = LearnerSettings.model_validate(
            FROZEN.model_dump() | {"epochs": 2, "num_workers": 1, "learning_rate": 1e-4, "lora": lora}
        )
        output = root / f"tuned-{bool(lora)}"
        metrics = fit("test", start, settings, Corpus.of(examples), output, SPLIT)
        loaded = Predictor.load((output / "model").uri)
        assert loaded.module.model.config.num_hidden_layers == 1
        before = Predictor.load((root / "heads" / "model").uri).module.model.score.weight
        moved = (loaded.module.model.score.weight - before).abs().max()
        assert 0 < moved < 0.1, "trained, from there"
        assert metrics.losses[0].loss < 3


@pytest.mark.slow
@pytest.mark.ray
def test_a_sample_is_drawn_and_nothing_to_fit_to_is_an_error(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    examples, root = rated(tiny_base, tmp_path), Storage(str(tmp_path))
    heads = HeadsSettings(layers=(1,), readings=("end",), max_answers=40)
    task = PredictorTask(tiny_base, SCHEMA, "steerlm", layer_heads=heads)
    alone = FROZEN.model_copy(update={"num_workers": 1})
    metrics = fit("test", task, alone, Corpus.of(examples), root / "out")
    most = max(fit.answers for fit in metrics.heads.values())
    assert 15 < most < 70
    assert np.isfinite([fit.explained for fit in metrics.heads.values()]).all()
    with pytest.raises(ValueError, match="no rated answer to fit heads to"):
        fit("test", task, alone, Corpus.of(examples), root / "none", weights={"lab_desk": 0.0, "lab_forum": 0.0})
