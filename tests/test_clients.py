"""Third-party clients with their defaults, against one endpoint: `make test-clients`.

Each runs in an environment of its own, which the target installs. The page of recipes has the table of what they do.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import client_environments
from support.client_list import CLIENTS, PAGE, RESULTS, SCRIPTS, Client, results, row_of
from support.client_run import served
from support.docs import Block, blocks
from support.endpoint import Endpoint, running

from actors.modeling.policy import Policy
from data.lab import Lab, LabSettings
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_NEW_TOKENS = 256
"""Of a request that names no length: a small model may repeat itself."""
CLIENT_TIMEOUT_S = 900
BLOCKS = blocks(PAGE)
RECIPES = [b for b in BLOCKS if b.mark == "needs make test-clients" and b.language != "yaml"]
NUM_TEXTS = 200
CHOICES = {
    "Owls are": ("birds.", "ships.", "so small."),
    "The moon is round. It": ("shines by night.", "eats."),
    "Bees dance": ("and guard ships.", "é"),
}
"""Questions of lm-eval, each with its choices."""


def choices() -> dict[str, tuple[str, ...]]:
    """CHOICES, and questions of the synthetic world, each with its answer and those to two others: NUM_TEXTS texts."""
    rows = [row.messages for row in Lab(LabSettings(num_rows=400)).rows()]
    answers = {messages[0].content: messages[1].content.strip() for messages in rows if messages[1].content.strip()}
    texts = [*answers.values()]
    found = dict(CHOICES) | {
        question: tuple(dict.fromkeys([texts[place], texts[place - 1], texts[place - 2]]))
        for place, question in enumerate(answers)
    }
    while sum(map(len, found.values())) > NUM_TEXTS + 2:
        found.popitem()
    assert sum(map(len, found.values())) >= NUM_TEXTS
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Located]:
    return served(client_environments.FOLDER / "runs", tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def endpoint(ray_cluster: object, models: list[Located]) -> Iterator[Endpoint]:
    with running(models, models[0].predictor, max_num_seqs=4, max_new_tokens=MAX_NEW_TOKENS) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def environ(endpoint: Endpoint, models: list[Located], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    reference = tmp_path_factory.mktemp("reference") / "rows.json"
    reference.write_text(json.dumps(log_likelihoods(models[0].uri)))
    own = {"STEERLM_URL": endpoint.url, "CLIENT_POLICY": models[0].uri, "CLIENT_REFERENCE": str(reference)}
    # Nothing of Ray, of AWS or of a user's own keys reaches a client.
    foreign = ("RAY_", "AWS_", "OPENAI_", "ANTHROPIC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | own


@torch.inference_mode()
def log_likelihoods(folder: str) -> list[dict[str, object]]:
    """Transformers' own of each choice behind its question and a space, as lm-eval joins them."""
    policy, rows = Policy.load(folder), list[dict[str, object]]()
    for question, texts in choices().items():
        found: dict[str, list[float]] = {"logprobs": [], "tokens": []}
        num_before = len(policy.raw_prompt(question))
        for choice in texts:
            ids = policy.raw_prompt(f"{question} {choice}")
            logprobs_TV = policy.model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)
            own_T = logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None])[num_before - 1 :, 0]
            found["logprobs"].append(own_T.double().sum().item())  # in fp32 a sum of 1,300 has steps of 1.2e-4
            found["tokens"].append(len(own_T))
        rows.append({"question": question, "choices": texts, **found})
    return rows


def require(family: str) -> Path:
    """The family's environment; skips with the reason where it is missing."""
    if missing := client_environments.why_missing(family):
        pytest.skip(missing)
    return client_environments.folder_of(family)


def command(script: Path, environment: Path) -> list[str]:
    """Node looks for packages beside the script, so it runs next to them."""
    if script.suffix == ".mjs":
        return ["node", script.name]
    python = environment / "bin" / "python"
    return [str(python if python.exists() else sys.executable), str(script)]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: Path(client.script).stem)
def test_the_client_does_all_that_its_row_says(client: Client, environ: dict[str, str], tmp_path: Path) -> None:
    environment = require(client.family)
    shutil.copytree(SCRIPTS, tmp_path, dirs_exist_ok=True)
    if client_environments.is_node(client.family):
        (tmp_path / "node_modules").symlink_to(environment / "node_modules")
    done = subprocess.run(
        command(tmp_path / client.script, environment),
        cwd=tmp_path,
        env=environ | {"CLIENT_ENVIRONMENT": str(environment), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=CLIENT_TIMEOUT_S,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"feature"')]
    assert lines, f"{client.script} tried nothing: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    RESULTS.mkdir(exist_ok=True)
    client.results.write_text(json.dumps(lines))
    failed = [f"{line['feature']}: {line['note']}" for line in lines if not line["works"]]
    assert not failed, "\n".join(failed) + f"\n{done.stderr[-3000:]}"
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_table_in_the_page_is_what_was_found() -> None:
    found = results()
    rows = set(PAGE.read_text().splitlines())
    remedy = "run: .venv/bin/python tests/support/client_list.py"
    assert [row for c in CLIENTS if c.script in found if (row := row_of(c, found[c.script])) not in rows] == [], remedy


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_the_recipe_runs(block: Block, environ: dict[str, str], endpoint: Endpoint, tmp_path: Path) -> None:
    """A recipe is the block under a client's heading; a YAML block before it is a file that it reads."""
    page = PAGE.read_text().splitlines()
    heading = next(line for line in reversed(page[: block.line]) if line.startswith("## ")).removeprefix("## ")
    client = next(client for client in CLIENTS if client.name == heading)
    environment = require(client.family)
    text = block.text.replace("http://127.0.0.1:8000", endpoint.url)
    before = BLOCKS[BLOCKS.index(block) - 1]
    if before.language == "yaml":
        name = before.text.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(before.text.replace("http://127.0.0.1:8000", endpoint.url))
    if client_environments.is_node(client.family):
        (tmp_path / "node_modules").symlink_to(environment / "node_modules")
    script = tmp_path / {"js": "recipe.mjs", "python": "recipe.py"}.get(block.language, "recipe.sh")
    script.write_text(text)
    words = ["bash", "-euo", "pipefail", str(script)] if script.suffix == ".sh" else command(script, environment)
    own = environ | {"POLICY": environ["CLIENT_POLICY"], "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    own |= {"PATH": f"{environment}/bin:{environment}/node_modules/.bin:{environ['PATH']}"}
    done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.strip(), "a recipe prints what came"
