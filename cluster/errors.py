"""The base of every error of this package that a person can fix: its sentence says what is wrong and how to fix it. Knows no error in particular."""


class ClusterError(ValueError):
    """A setting, a node or a cluster that is not as it must be. What `data.errors.UserError` is to the packages above, which this one cannot import."""
