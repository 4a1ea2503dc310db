"""The names of the stages of a run's bootstrap rounds, and the decision that each round left. Knows no stage's work."""

from dataclasses import dataclass

from data.stage_metrics import Decision, NotRun, PromotionMetrics
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
        """The stage that decides which policy is promoted after round `number`."""
        return self.stage(number, "promotion")

    def promoted(self, run: Run, number: int) -> str:
        """The stage of the policy to use after round `number`."""
        decision = self.decision(run, number)
        return decision.policy if decision else self.first

    def decision(self, run: Run, number: int) -> Decision | None:
        """The decision after round `number`, a `PromotionMetrics` or a `NotRun`; None if the round is not finished."""
        manifest = run.manifest(self.promotion(number)) if number else None
        if manifest is None:
            return None
        return manifest.read_as(NotRun if "not_run" in manifest.metrics else PromotionMetrics)


def newest_policy(run: Run) -> tuple[str, tuple[str, ...]]:
    """The stage of the policy that was promoted last, and the stages that say so; without rounds the first policy.

    Only rounds with a decision count.
    """
    numbers = range(1, run.preset.bootstrap.rounds + 1)
    last = max((number for number in numbers if run.manifest(Rounds().promotion(number))), default=0)
    promoted, decision = Rounds().promoted(run, last), [Rounds().promotion(last)] if last else []
    return promoted, tuple(dict.fromkeys(["policy", promoted, *decision]))


def unconditional_stage(rounds: Rounds) -> str:
    """The stage of the policy that gives log P(y|x) to all rounds of SteerLM 2.0."""
    return f"{rounds.prefix}unconditional"


def stage_names(num_rounds: int) -> list[str]:
    """All stages of a run's rounds, in order."""
    return [Rounds().stage(number, kind) for number in range(1, num_rounds + 1) for kind in KINDS]
