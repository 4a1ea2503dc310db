"""The third-party clients that are tried, and the table of docs/clients.md, made from what their scripts printed.

`python tests/support/client_list.py` writes the table that the last `make test-clients` found into the page.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).with_name("clients")
RESULTS = ROOT / ".venv-clients" / "results"
"""A file for each client: what each of its features did."""
PAGE = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"
FEATURES = {
    "chat": "chat",
    "stream": "stream",
    "system": "system text",
    "turns": "turns",
    "json": "JSON by schema",
    "tools": "tools",
    "profile": "profile as model",
    "attributes": "attributes",
    "measured": "measured values",
    "logprobs": "log-probabilities",
    "models": "list of models",
    "completions": "text completions",
    "responses": "responses",
    "anthropic": "Anthropic's shape",
    "errors": "our error message",
}
"""A function in the scripts -> its column."""


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    name: str
    """As in the page: the heading of its recipe."""
    family: str
    """Its environment."""
    script: str
    """In tests/support/clients."""

    @property
    def results(self) -> Path:
        return RESULTS / f"{Path(self.script).stem}.json"


CLIENTS = (
    Client("openai (Python)", "openai", "openai_python.py"),
    Client("openai (Node)", "node", "openai_node.mjs"),
    Client("LangChain", "langchain", "langchain_openai_client.py"),
    Client("LiteLLM", "litellm", "litellm_client.py"),
    Client("LiteLLM's proxy", "litellm", "litellm_proxy.py"),
    Client("LlamaIndex", "llamaindex", "llamaindex_client.py"),
    Client("Pydantic AI", "pydantic-ai", "pydantic_ai_client.py"),
    Client("Instructor", "instructor", "instructor_client.py"),
    Client("OpenAI Agents SDK", "openai-agents", "openai_agents_client.py"),
    Client("Vercel AI SDK, openai", "node", "vercel_openai.mjs"),
    Client("Vercel AI SDK, openai-compatible", "node", "vercel_compatible.mjs"),
    Client("promptfoo", "promptfoo", "promptfoo_client.py"),
    Client("lm-eval", "lm-eval", "lm_eval_client.py"),
    Client("guidellm", "guidellm", "guidellm_client.py"),
    Client("vLLM's bench serve", "vllm", "vllm_bench.py"),
    Client("Open WebUI", "open-webui", "open_webui.py"),
)


def row_of(client: Client, lines: Sequence[Mapping[str, object]]) -> str:
    """The client's row: W = works, F = fails, blank = it has no such feature."""
    marks = {str(line["feature"]): "W" if line["works"] else "F" for line in lines}
    assert set(marks) <= FEATURES.keys(), f"{client.script} has features without a column: {set(marks)}"
    return f"| {client.name} | {' | '.join(marks.get(feature, '') for feature in FEATURES)} |"


def table(found: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """`found`: script -> its lines."""
    head = f"| client | {' | '.join(FEATURES.values())} |\n|{'---|' * (len(FEATURES) + 1)}\n"
    return head + "".join(f"{row_of(client, found[client.script])}\n" for client in CLIENTS if client.script in found)


def results() -> dict[str, list[dict[str, object]]]:
    """Script -> what it printed when it last ran."""
    return {c.script: json.loads(c.results.read_text()) for c in CLIENTS if c.results.exists()}


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    found = results()
    missing = [client.name for client in CLIENTS if client.script not in found]
    if missing:
        print(f"no results of {', '.join(missing)}, so no rows: make test-clients brings them", file=sys.stderr)
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
