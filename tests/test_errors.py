"""One sentence for people, a traceback for bugs: by the error's type, wherever it was raised."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
from botocore.exceptions import NoCredentialsError
from ray.exceptions import RayTaskError

from actors.training import worker
from actors.training.collectives import agree
from actors.training.settings import LearnerSettings
from actors.training.train_state import TrainState
from actors.training.trainer import Assignment
from cluster.errors import ClusterError
from data.attributes import shipped
from data.errors import UserError, is_user_error
from data.operators import Score
from jobs.runner.ending import user_errors_reported
from jobs.runner.stage import StageError


def _no_number() -> None:
    int("abc")


def _unequal_lengths() -> None:
    list(zip([1], [1, 2], strict=True))


def _no_broadcast() -> None:
    np.ones(2) + np.ones(3)


def _no_unpacking() -> None:
    _one, _two = [1]


def _not_in_a_list() -> None:
    [1].index(2)


BUGS = [_no_number, _unequal_lengths, _no_broadcast, _no_unpacking, _not_in_a_list]
"""ValueErrors whose innermost Python frame is ours, since C or NumPy raised them."""


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError("x"), ConnectionError("x")])
def test_the_systems_errors_are_for_people(error: Exception) -> None:
    assert is_user_error(_raised(error))


def test_our_own_sentences_are_for_people() -> None:
    with pytest.raises(UserError, match="unknown attribute schema") as ours:
        shipped("nothing")
    assert is_user_error(ours.value)
    assert is_user_error(StageError("wherever it comes from"))
    assert not is_user_error(KeyError("x"))


@pytest.mark.parametrize("bug", BUGS)
def test_a_value_error_that_nobody_raised_on_purpose_keeps_its_traceback(bug: Callable[[], None]) -> None:
    with pytest.raises(ValueError) as caught, user_errors_reported("program", "again"):  # noqa: PT011 - any
        bug()
    assert not isinstance(caught.value, UserError)
    assert bug.__name__ in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("error", [UserError("fix it"), ClusterError("fix it"), FileNotFoundError("fix it")])
def test_what_was_raised_on_purpose_is_one_sentence(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors_reported("program", "again"):
        raise error
    assert capsys.readouterr().err == "program: fix it\n"


def test_a_store_without_credentials_is_named_with_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors_reported("program", "again"):
        raise NoCredentialsError
    said = capsys.readouterr().err
    assert said.startswith("program: S3 says: Unable to locate credentials; set AWS_ACCESS_KEY_ID and ")
    assert "AWS_PROFILE, or name another place (storage, " in said
    assert len(said) <= 400


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_does_not_stop_ray_trains_retry(
    bug: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note that ends the workers started next is left for a UserError alone."""

    class Training:
        state = TrainState()

        def __init__(self, assignment: object):
            del assignment

        def run(self) -> None:
            bug()

    class Given:
        output_uri = str(tmp_path)
        settings = LearnerSettings()

    monkeypatch.setattr(worker, "Training", Training)
    with pytest.raises(ValueError):  # noqa: PT011 - any
        worker.train(cast("Assignment", Given()))
    assert not (tmp_path / worker.USER_ERROR).exists()
    monkeypatch.setattr(Training, "run", lambda self: (_ for _ in ()).throw(UserError("fix it")))
    with pytest.raises(UserError):
        worker.train(cast("Assignment", Given()))
    assert (tmp_path / worker.USER_ERROR).read_text() == "fix it"


@pytest.mark.case("A7: a mistake that all workers find")
def test_an_error_that_all_workers_raise_fails_none_so_that_ray_train_starts_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Given:
        output_uri = str(tmp_path)
        settings = LearnerSettings()

    def agreed(_: object) -> None:
        agree(UserError("fix it"))

    monkeypatch.setattr(worker, "Training", agreed)
    worker.train(cast("Assignment", Given()))
    assert (tmp_path / worker.USER_ERROR).read_text() == "fix it"
    monkeypatch.setattr(worker, "Training", lambda _: pytest.fail("it must not start again"))
    worker.train(cast("Assignment", Given()))
    Given.output_uri = str(tmp_path / worker.USER_ERROR)  # no folder, so that nothing can be noted there
    monkeypatch.setattr(worker, "Training", agreed)
    with pytest.raises(UserError, match=r"^fix it$"):
        worker.train(cast("Assignment", Given()))


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_a_pipelines_worker_is_raised_and_a_user_error_travels_as_a_sentence(bug: Callable[[], None]) -> None:
    class Worker:
        def __call__(self, rows: pa.Table) -> pa.Table:
            bug()
            return rows

    class Refusing:
        def __init__(self) -> None:
            raise UserError("no predictor there")

    with pytest.raises(ValueError):  # noqa: PT011 - any
        Score(Worker, {})._scored(pa.table({"id": ["a"]}))
    assert Score(Refusing, {})._failure == "no predictor there"


def test_a_workers_error_in_rays_wrapping_is_a_bug() -> None:
    """It is an OSError, too, but its text is a traceback."""
    wrapped = RayTaskError("f", "Traceback ...", FileNotFoundError(2, "x"), pid=1, ip="127.0.0.1").as_instanceof_cause()
    assert isinstance(wrapped, OSError)
    assert not is_user_error(wrapped)
    assert is_user_error(wrapped.cause)
