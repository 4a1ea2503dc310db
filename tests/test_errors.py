"""One sentence for people, a traceback for bugs."""

import pytest
from ray.exceptions import RayTaskError

from data.errors import is_for_people
from jobs.runner.stage import StageError


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def _deep_in_a_library() -> Exception:
    import json

    try:
        json.loads("{")
    except ValueError as caught:
        return caught
    raise AssertionError


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError("x"), ConnectionError("x")])
def test_the_systems_errors_are_for_people(error: Exception) -> None:
    assert is_for_people(_raised(error))


def test_our_own_sentences_are_for_people_and_a_librarys_are_not() -> None:
    from data.attributes import shipped

    with pytest.raises(ValueError, match="unknown attribute schema") as ours:
        shipped("nothing")
    assert is_for_people(ours.value)
    assert not is_for_people(_deep_in_a_library())
    assert not is_for_people(_raised(KeyError("x")))
    assert not is_for_people(StageError("never raised, so nobody knows by whom"))


def test_a_workers_error_in_rays_wrapping_is_a_bug() -> None:
    """It is an OSError, too, but its text is a traceback."""
    wrapped = RayTaskError("f", "Traceback ...", FileNotFoundError(2, "x"), pid=1, ip="127.0.0.1").as_instanceof_cause()
    assert isinstance(wrapped, OSError)
    assert not is_for_people(wrapped)
    assert is_for_people(wrapped.cause)
