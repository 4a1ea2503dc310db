"""The help: every key with its type, default and meaning."""

from typing import Literal

from pydantic import Field

from cluster.settings.help import help_text
from data.record import Record


class Train(Record):
    learning_rate: float = Field(1e-3, gt=0)
    epochs: int = 1
    """Passes over all rows."""


class Source(Record):
    limit: int | None = None


class Team(Record):
    key: str


class Run(Record):
    name: str
    """What the run is called."""
    train: Train = Train(epochs=3)
    sources: tuple[Source, ...] = ()
    teams: dict[str, Team] = {}
    kind: Literal["lab", "real"] = "lab"
    window_tokens: int | Literal["all"] = "all"
    again: Train | None = None


def test_help_lists_every_key_with_type_default_and_meaning():
    text = help_text(Run)
    assert "name  text (required)\n      What the run is called." in text
    assert "train.epochs  whole number = 3\n      Passes over all rows." in text  # the field's default, not the class's
    assert "train.learning_rate  number (> 0) = 0.001" in text
    assert "sources.N.limit  whole number or null = null" in text
    assert "teams.NAME.key  text (required)" in text
    assert 'kind  lab|real = "lab"' in text
    assert 'window_tokens  whole number or all = "all"' in text
    assert "again  section or null = null" in text


def test_help_of_a_record_that_holds_itself_ends():
    class Node(Record):
        below: "Node | None" = None

    assert "below  section or null = null" in help_text(Node)
