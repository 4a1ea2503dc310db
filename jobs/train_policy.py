"""Stage `policy`, step 3 of SteerLM: train a language model to answer at requested attribute values.

python -m jobs.train_policy PRESET.yaml [key.path=value ...]
"""

from jobs.policy_training.policy_stage import STAGE
from jobs.runner.cli import main

if __name__ == "__main__":
    main(__doc__, [STAGE])
