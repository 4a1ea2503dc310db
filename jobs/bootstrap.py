"""Stages `bootstrap-N/*`, step 4 of SteerLM: sample from the policy at its best settings, rate, train, decide.

python -m jobs.bootstrap PRESET.yaml [key.path=value ...]
"""

from jobs.policy_training.steerlm2_stages import round_stages
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Stage


def stages(preset: Preset) -> list[Stage]:
    """All rounds of a run."""
    numbers = range(1, preset.bootstrap.rounds + 1)
    return [stage for number in numbers for stage in round_stages(preset, Rounds(), number)]


if __name__ == "__main__":
    main(__doc__, stages)
