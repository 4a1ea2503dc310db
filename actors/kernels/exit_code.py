"""What the exit code of a process means, for messages."""

import signal


def ended(code: int) -> str:
    """Why a process has ended that should run, from its exit code as Python's modules give it."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was ended by {signal.Signals(-code).name}, as the system does for want of memory"
