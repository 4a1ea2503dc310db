"""The ranges of numbers in settings, each named once: a wrong number is refused before anything starts.

Every number of a settings record has one of these types. None takes true or false, `nan` or `inf`. A unit that is not
in the name of the type stands under the setting.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError, PydanticKnownError


def _no_bool_int(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_bool_float(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


def _whole_or_share(value: float) -> float:
    if value > 1 and value % 1:
        raise PydanticCustomError("whole_gpus", "a share from 0 to 1, or a whole number of GPUs")
    return value


INT, FLOAT = BeforeValidator(_no_bool_int), BeforeValidator(_no_bool_float)

Whole = Annotated[int, INT]
"""Any whole number: the field has the range. A type that has one cannot be narrowed by a field."""
Count = Annotated[int, Field(ge=0, le=10**12), INT]
"""How many; 0 = none, or no limit."""
Size = Annotated[int, Field(ge=1, le=10**12), INT]
"""How many, at least one: rows, tokens, bytes."""
Width = Annotated[int, Field(ge=1, le=10**6), INT]
"""A dimension of a model."""
Vocabulary = Annotated[int, Field(ge=300, le=10**7), INT]
"""Entries of a byte-level tokenizer: 256 bytes, the control tokens, and some merges."""
Parameters = Annotated[int, Field(ge=1, le=10**14), INT]
"""Weights of a model."""
StoreMib = Annotated[int, Field(ge=80, le=10**8), INT]
"""Shared memory, MiB; Ray starts with no less than 75 MB."""
TokenBudget = Annotated[int, Field(ge=2, le=10**8), INT]
"""A budget of tokens: the shortest conversation has two."""
ContextTokens = Annotated[int, Field(ge=16, le=10**9), INT]
"""Tokens of a prompt and its answer together, at most."""
Workers = Annotated[int, Field(ge=1, le=100_000), INT]
"""Processes, requests or threads at the same time."""
Repeats = Annotated[int, Field(ge=0, le=1000), INT]
"""How often something is done that takes long each time; 0 = never."""
Times = Annotated[int, Field(ge=1, le=1000), INT]
"""The same, at least once."""
Resamples = Annotated[int, Field(ge=10, le=100_000), INT]
"""Random draws behind an interval; all are in memory at once."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), INT]
"""NumPy takes no other."""
ScaleValue = Annotated[int, Field(ge=-1000, le=1000), INT]
"""A value on an attribute's scale; a report varies each attribute over all of it."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), FLOAT]
"""0 = none, 1 = all."""
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), FLOAT]
"""A share that leaves something."""
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), FLOAT]
"""A share that takes something."""
InnerShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), FLOAT]
"""A share that takes something and leaves something."""
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False), FLOAT]
"""How much; 0 = nothing."""
RowFactor = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), FLOAT]
"""How often rows are used: 0.5 = half of them, 2 = each twice."""
Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False), FLOAT]
"""How much, more than nothing."""
Weight = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), FLOAT]
"""A factor of either sign."""
Score = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False), FLOAT]
"""A value on a source's own scale."""
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), FLOAT]
"""0 = the likeliest token; above 2 or so it is noise."""
MAX_GUIDANCE = 10.0
"""Classifier-free guidance multiplies a difference of log-probabilities, and its rounding, by up to so much."""
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False), FLOAT]
"""Strength of classifier-free guidance; 1 = none."""
MostGuidance = Annotated[float, Field(ge=1, le=MAX_GUIDANCE, allow_inf_nan=False), FLOAT]
"""A limit of it."""
Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False), FLOAT]
"""A time; 1e8 s are three years."""
PositiveSeconds = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False), FLOAT]
"""A time that passes."""
Cpus = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False), FLOAT]
"""CPUs that Ray sets aside for one process."""
Gpus = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), FLOAT, AfterValidator(_whole_or_share)]
"""GPUs that Ray sets aside for one process: a share of one, or whole ones."""
