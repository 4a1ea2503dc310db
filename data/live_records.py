"""What the endpoint keeps of an answer in production: requested and measured values, never a text nor a way to one.

A record is a line of JSON. The endpoint writes them, `jobs.report --live` reads them. Knows no HTTP and no page.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from data.bounds import Count
from data.conversation import Rejected
from data.lines import Line, lines
from data.printable import printable
from data.record import Record
from data.source_files import files_of

Value = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Of an attribute, as in a schema: files of a report are called after it."""


class LiveRecord(Record):
    """One answer."""

    time: AwareDatetime
    """When it was whole, to the second."""
    team: str
    model: str
    policy: str
    """The checkpoint that answered."""
    profile: str | None
    scales: dict[Name, tuple[int, int]]
    """Attribute -> lowest and highest value of the policy's schema."""
    requested: dict[str, Value]
    """Attributes as the caller asked for them."""
    effective: dict[str, int]
    """What the prompt had of each attribute: requested, or else the default."""
    measured: dict[str, Value]
    """The predictor's values, on the scale of the policy's labels."""
    prompt_tokens: Count
    completion_tokens: Count
    """Of this answer alone."""
    sampled: bool
    """Drawn by live.share; else it is here because its caller had it rated, and who does is no fair sample."""
    best_of: Count
    """How many answers it was chosen from; 0 = it was the only one."""
    guidance: Value
    """1 = none."""

    @model_validator(mode="after")
    def _on_scale(self) -> "LiveRecord":
        for name, value in self.effective.items():
            if name not in self.scales:
                raise ValueError(f"effective has {name!r}, scales has not")
            low, high = self.scales[name]
            if not low <= value <= high or low == high:
                raise ValueError(f"effective has {name} {value} on a scale of {low} to {high}")
        if unknown := self.measured.keys() - self.effective.keys():
            raise ValueError(f"measured has {min(unknown)!r}, effective has not")
        return self


def read_live(uri: str) -> Iterator[LiveRecord | Rejected]:
    """All records of the file, folder or glob at `uri`, a line at a time; what is none is Rejected.

    Raises FileNotFoundError for a `uri` with nothing there.
    """
    for file in files_of(uri):
        found = lines(file)
        while True:
            try:
                line = next(found, None)
            except FileNotFoundError:  # too old meanwhile: the endpoint has removed it
                break
            if line is None:
                break
            yield line if isinstance(line, Rejected) else _record(line)


def _record(line: Line) -> LiveRecord | Rejected:
    try:
        return LiveRecord.model_validate(line.record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Rejected(line.file, line.number, "no_live_record", printable(f"{where} {first['msg']}".strip(), 200))
