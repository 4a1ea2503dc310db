"""A report of `jobs.judge` as others read it: which answers were judged, win rates, mean ratings. Knows no judge."""

from pydantic import ConfigDict, ValidationError

from data.benchmark_metrics import TaskScore
from data.errors import UserError
from data.record import Record
from data.run_layout import REPORT
from data.storage import Storage
from data.uris import shown_uri


class PartOfReport(Record):
    """What is read here is not all that there is."""

    model_config = ConfigDict(extra="ignore")


class JudgedAnswers(PartOfReport):
    """Of one model."""

    questions: int
    """The first so many of the file."""
    digest: str
    """As `data.benchmarks.ModelAnswers.digest`."""


class PairRate(PartOfReport):
    """Two models' answers compared, seen from the side of `model`."""

    model: str
    against: str
    win_rate: float | None
    """A tie counts half; None = no comparison has a verdict."""
    interval: tuple[float, float] | None


class MeanRating(PartOfReport):
    """A model's answers rated one by one."""

    mean: float | None
    interval: tuple[float, float] | None


class JudgeReport(PartOfReport):
    """The judge, and what it found."""

    judge: str
    reference_model: str
    answers: dict[str, JudgedAnswers] = {}
    """Model -> what was judged of it; empty in a report of stored judgements."""
    pairs: tuple[PairRate, ...] = ()
    single: dict[str, MeanRating] = {}

    def opponents(self, model: str) -> list[str]:
        """Whom the model was compared with."""
        both = [(pair.model, pair.against) for pair in self.pairs]
        return [other for one, other in (*both, *((other, one) for one, other in both)) if one == model]

    def win_rate(self, model: str, against: str) -> TaskScore | None:
        """From the side of `model`; None if the two never met."""
        for pair in self.pairs:
            if (pair.model, pair.against) == (model, against):
                return TaskScore(value=pair.win_rate, interval=pair.interval)
            if (pair.model, pair.against) == (against, model):
                turned = None if pair.interval is None else (_rest(pair.interval[1]), _rest(pair.interval[0]))
                return TaskScore(value=None if pair.win_rate is None else _rest(pair.win_rate), interval=turned)
        return None

    def rating(self, model: str) -> TaskScore | None:
        """From 1 to 10; None if the model's answers were not rated one by one."""
        found = self.single.get(model)
        return None if found is None else TaskScore(value=found.mean, interval=found.interval)


def read_judge_report(folder: Storage) -> JudgeReport | None:
    """None if no judge has finished there. Raises UserError for a file that is no report of a judge."""
    file = folder / REPORT
    if not file.exists():
        return None
    try:
        return JudgeReport.model_validate(file.read_json())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        raise UserError(
            f"{shown_uri(file.uri)} is no report of jobs.judge ({where}: {error.errors()[0]['msg']}); name the folder "
            "that was its `output`"
        ) from None


def _rest(share: float) -> float:
    return round(1 - share, 4)
