"""What `jobs.diff` can be told besides the two runs. Only numbers."""

from data.bounds import Amount, Count, Size
from data.record import Record


class DiffSettings(Record):
    """How two runs are compared."""

    tolerance: Amount = 0.0
    """Labels and metrics that differ by no more are equal, points of their scale."""
    shown: Count = 10
    """Ids and metrics printed of each kind, at most; the last line has all metrics, and as many ids."""
    bucket_rows: Size = 1_000_000
    """Rows that are compared at a time where both runs have other rows, or another order; some 100 MB."""
