"""The names of a run's bootstrap rounds: which stage leaves the policy of a round, and which says whether it is promoted. Knows no stage's work."""

from dataclasses import dataclass

from jobs.runner.stage import Run

KINDS = ("samples", "rated", "selected", "policy", "promotion")
"""The stages of a round, in order."""


@dataclass(frozen=True)
class Rounds:
    """The rounds that follow one policy."""

    prefix: str = ""
    """Folder of the rounds in the run."""
    first: str = "policy"
    """The stage of the policy that the first round samples."""

    def stage(self, number: int, kind: str) -> str:
        """The stage `kind` (one of KINDS) of round `number`."""
        return f"{self.prefix}bootstrap-{number}/{kind}"

    def policy(self, number: int) -> str:
        """The stage that leaves the policy of round `number`; round 0 is the one before the first."""
        return self.stage(number, "policy") if number else self.first

    def promotion(self, number: int) -> str:
        """The stage whose figures say which `policy` is promoted after round `number`."""
        return self.stage(number, "promotion")

    def promoted(self, run: Run, number: int) -> str:
        """The stage of the policy to use after round `number`."""
        manifest = run.manifest(self.promotion(number)) if number else None
        return str(manifest["metrics"]["policy"]) if manifest else self.first


def stage_names(num_rounds: int) -> list[str]:
    """All stages of a run's rounds, in order."""
    return [Rounds().stage(number, kind) for number in range(1, num_rounds + 1) for kind in KINDS]
