"""The base of every error of this package that a person can fix: its sentence has the problem and the fix."""


class ClusterError(ValueError):
    """A setting, a node or a cluster is not as it must be: `data.errors.UserError`, which may not be imported here."""
