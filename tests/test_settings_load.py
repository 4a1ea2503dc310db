"""Presets and overrides: what loads, and the sentence for each error."""

from typing import Literal

import pytest
from pydantic import Field, model_validator

from cluster.settings.errors import SettingsError
from cluster.settings.load import command_line, load
from data.record import Record


class Train(Record):
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    epochs: int = 1
    """Passes over all rows."""


class Source(Record):
    uri: str
    """Where the rows are."""
    limit: int | None = None
    """Read at most this many rows."""


class Team(Record):
    key: str
    """Bearer key."""


class Scale(Record):
    low: int = 0
    high: int = 4

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value):
        return {"low": 0, "high": 9} if value == "paper" else value

    @model_validator(mode="after")
    def _order(self):
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


class Run(Record):
    name: str
    """What the run is called."""
    train: Train = Train(epochs=3)
    """Step 3."""
    sources: tuple[Source, ...] = (Source(uri="a"), Source(uri="b"))
    """Read in this order."""
    teams: dict[str, Team] = {}
    weights: dict[str, float] = {"a": 1.0}
    kind: Literal["lab", "real"] = "lab"
    cached: bool = False
    window_tokens: int | Literal["all"] = "all"
    again: Train | None = None
    scale: Scale = Scale()

    @model_validator(mode="after")
    def _short(self):
        if self.kind == "lab" and self.train.epochs > 5000:
            raise ValueError(f"train.epochs is {self.train.epochs}: 5000 are enough for kind lab")
        return self


@pytest.fixture
def preset(tmp_path):
    def write(text, name="demo.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def problem(path, *overrides):
    with pytest.raises(SettingsError) as error:
        load(Run, path, overrides)
    return str(error.value)


def test_values_of_a_preset_and_defaults_for_the_rest(preset):
    run = load(Run, preset("name: x\nsources: [{uri: s3://bucket/rows, limit: 10}]\n"))
    assert run == Run(name="x", sources=(Source(uri="s3://bucket/rows", limit=10),))


def test_one_key_of_a_section_keeps_what_the_field_gives_the_others(preset):
    assert load(Run, preset("name: x\ntrain: {learning_rate: 1}")).train == Train(learning_rate=1, epochs=3)
    assert load(Run, preset("name: x"), ["train.learning_rate=1"]).train == Train(learning_rate=1, epochs=3)


@pytest.mark.parametrize("written", ["1e-3", "1E-3", ".001", "0.001", "1.0e-3"])
def test_numbers_as_people_write_them(preset, written):
    assert load(Run, preset(f"name: x\ntrain: {{learning_rate: {written}}}")).train.learning_rate == 0.001


@pytest.mark.parametrize(("written", "value"), [("1_000", 1000), ("0x10", 16), ("-3", -3), ("1e3", 1000), ("0", 0)])
def test_whole_numbers(preset, written, value):
    assert load(Run, preset(f"name: x\ntrain: {{epochs: {written}}}")).train.epochs == value


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "010", "2024-01-01", "1:30", "=", "1.2.3"])
def test_words_that_yaml_1_1_would_change_stay_text(preset, word):
    assert load(Run, preset(f"name: {word}")).name == word


def test_overrides_win_left_to_right_and_are_parsed_as_yaml(preset):
    run = load(
        Run,
        preset("name: x\ntrain: {epochs: 2}"),
        ["train.epochs=4", "train.epochs=5", "cached=true", "weights={b: 1e-1}", "name='7'"],
    )
    assert (run.train.epochs, run.cached, run.weights, run.name) == (5, True, {"b": 0.1}, "7")


def test_an_override_reaches_into_lists_mappings_and_absent_sections(preset):
    run = load(
        Run,
        preset("name: x\nsources: [{uri: c}, {uri: d}]"),
        ["sources.1.limit=10", "teams.school.key=k", "weights.b=2", "again.epochs=9"],
    )
    assert run.sources == (Source(uri="c"), Source(uri="d", limit=10))
    assert run.teams == {"school": Team(key="k")}
    assert run.weights == {"a": 1.0, "b": 2.0}
    assert run.again == Train(epochs=9)


def test_an_override_reaches_into_a_default_list(preset):
    assert load(Run, preset("name: x"), ["sources.0.limit=10"]).sources == (Source(uri="a", limit=10), Source(uri="b"))


def test_an_override_replaces_a_whole_section_or_list(preset):
    run = load(Run, preset("name: x\nsources: [{uri: c}]\nagain: {epochs: 2}"), ["sources=[{uri: z}]", "again=null"])
    assert (run.sources, run.again) == ((Source(uri="z"),), None)


def test_a_record_may_read_a_short_form_of_its_own(preset):
    assert load(Run, preset("name: x\nscale: paper")).scale == Scale(high=9)


def test_extends_is_merged_key_by_key(preset):
    preset("name: base\ntrain: {epochs: 7, learning_rate: 2}\nsources: [{uri: base}]", "base.yaml")
    path = preset("extends: base.yaml\nname: child\ntrain: {learning_rate: 3}\nsources: [{uri: child}]")
    assert load(Run, path) == Run(name="child", train=Train(epochs=7, learning_rate=3), sources=(Source(uri="child"),))


def test_extends_names_a_file_that_is_not_there_or_itself(preset):
    preset("name: x", "base.yaml")
    assert "demo.yaml extends" in (said := problem(preset("extends: bsae.yaml")))
    assert "base.yaml" in said
    assert "extends itself" in problem(preset("extends: demo.yaml"))
    assert "allowed is one file name" in problem(preset("extends: [base.yaml]"))


def test_the_file_at_fault_is_named_even_when_another_extends_it(preset):
    base = preset("name: base\ntrain: {epoch: 7}", "base.yaml")
    said = problem(preset("extends: base.yaml"))
    assert f"unknown key train.epoch in {base}" in said
    assert "did you mean train.epochs?" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trian={}", ["unknown key trian on the command line", "did you mean train?"]),
        ("train.epoch=1", ["unknown key train.epoch", "did you mean train.epochs?"]),
        ("epochs=1", ["unknown key epochs", "did you mean train.epochs?"]),
        ("sources.0.limt=1", ["unknown key sources.0.limt", "did you mean sources.N.limit?"]),
        ("zzz=1", ["unknown key zzz", "known here: name, train"]),
        ("train.epochs=ten", ["train.epochs", '"ten"', "allowed: a whole number"]),
        ("train.epochs='5'", ["train.epochs", '"5"', "without quotes"]),
        ("train.epochs=1.5", ["train.epochs", "1.5", "a whole number"]),
        ("train.epochs=true", ["train.epochs", "true", "a whole number"]),
        ("train.epochs=010", ["train.epochs", '"010"', "a whole number"]),
        ("train.learning_rate=0", ["train.learning_rate", "got 0", "greater than 0"]),
        ("cached=yes", ["cached", '"yes"', "true or false"]),
        ("cached=1", ["cached", "got 1", "true or false"]),
        ("kind=lap", ["kind", '"lap"', "'lab' or 'real'"]),
        ("window_tokens=most", ["window_tokens", "a whole number or 'all'"]),
        ("name=5", ["name", "got 5", "allowed: text"]),
        ("name=", ["name", "got null", "allowed: text"]),
        ("train=4", ["train", "got 4", "a section"]),
        ("sources=4", ["sources", "got 4", "a list"]),
        ("sources.2.limit=1", ["sources is a list of 2", "'2' must be a number from 0 to 1"]),
        ("sources.x.limit=1", ["sources is a list of 2"]),
        ("train.epochs.x=1", ["train.epochs is 3", "no keys below it"]),
        ("teams.school={}", ["teams.school.key is missing", "teams.school.key=VALUE"]),
        ("scale.high=-1", ["scale on the command line: low 0 must be below high -1"]),
        ("train", ["'train' is no setting", "key.path=value"]),
        ("train..epochs=1", ["is no setting"]),
        ("weights={a: 1, a: 2}", ["'a' stands twice"]),
        ("weights={", ["the value of weights is no valid YAML"]),
    ],
)
def test_a_wrong_override_names_what_is_wrong_and_what_is_allowed(preset, override, said):
    message = problem(preset("name: x\ntrain: {epochs: 3}"), override)
    assert [part for part in said if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "overrides", "place"),
    [
        ("name: x", ["train.epochs=9000"], "on the command line: train.epochs is 9000"),
        ("name: x\ntrain: {epochs: 9000}", ["kind=lab"], "demo.yaml: train.epochs is 9000"),
        ("name: x\nkind: real\ntrain: {epochs: 9000}", ["kind=lab"], "on the command line: train.epochs is 9000"),
        ("name: x\nscale: {low: 5}", ["scale.high=3"], "scale on the command line: low 5"),
        ("name: x\nscale: {low: 5}", ["scale.high=4"], "demo.yaml: low 5"),
    ],
)
def test_settings_that_contradict_each_other_name_the_place_of_the_one_that_made_it_so(preset, text, overrides, place):
    assert place in problem(preset(text), *overrides)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\ntrain: {}\nname: y", ["demo.yaml", "line 3", "'name' stands twice", "line 1"]),
        ("name: [", ["demo.yaml is no valid YAML"]),
        ("- name", ["demo.yaml holds", "a mapping"]),
        ("", ["name is missing in", "demo.yaml", "name=VALUE"]),
        ("name: x\nsources: [{uri: a}, {limit: 1}]", ["sources.1.uri is missing"]),
        ("name: x\ntrain: {epochs: ten}", ['train.epochs: got "ten" in', "demo.yaml", "a whole number"]),
        ("name: x\n? [a, b]\n: 1", ["a key must be a plain word"]),
        ("name: x\nyes: 1", ["unknown key yes"]),
    ],
)
def test_a_wrong_preset_is_an_error(preset, text, said):
    message = problem(preset(text))
    assert [part for part in said if part not in message] == []


def test_all_errors_are_reported_at_once(preset):
    assert len(problem(preset("name: 5\ntrain: {epochs: ten}\nfoo: 1")).splitlines()) == 3


def test_a_preset_that_is_not_there_lists_those_that_are(preset, tmp_path):
    preset("name: x")
    assert "has demo.yaml" in problem(str(tmp_path / "dmeo.yaml"))


def run_command(*argv):
    return command_line(Run, argv, "python -m jobs.x", "Does x.", {"plan": "Print what would be done."})


def test_command_line_takes_a_preset_overrides_and_flags(preset):
    path = preset("name: x")
    assert run_command(path, "train.epochs=4", "--plan") == (Run(name="x", train=Train(epochs=4)), {"plan"})
    assert run_command("--plan", path) == (Run(name="x"), {"plan"})
    assert run_command(path) == (Run(name="x"), set())


def test_help_goes_to_stdout_and_exits_0(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command("--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m jobs.x PRESET.yaml [key.path=value ...] [--plan]\n\nDoes x.\n")
    assert "Print what would be done." in said
    assert "train.epochs" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the first word must be a preset file"),
        (["train.epochs=4"], "the first word must be a preset file"),
        (["nowhere.yaml"], "cannot read preset nowhere.yaml (No such file or directory)"),
        (["demo.yaml", "--pln"], "unknown flag --pln (did you mean --plan?)"),
        (["demo.yaml", "trian.epochs=4"], "unknown key trian"),
    ],
)
def test_a_user_error_is_one_line_on_stderr_and_exit_code_2(preset, tmp_path, monkeypatch, capsys, argv, said):
    preset("name: x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_command(*argv)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m jobs.x: ")
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
