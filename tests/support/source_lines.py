"""A run over one small file of conversations."""

import json
from pathlib import Path

from cluster.settings.load import load
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

DEMO = str(Path(__file__).parent.parent.parent / "jobs" / "presets" / "demo.yaml")


def line(question: str, answer: str = "Because.", **values: object) -> str:
    return json.dumps(
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer, "attributes": values},
            ]
        }
    )


def run_of(tmp_path: Path, lines: list[str], *overrides: str) -> Run:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    sources = f"rows.sources=[{{name: mine, format: messages, uri: {source}}}]"
    return Run(load(Preset, DEMO, [f"storage={tmp_path}/runs", sources, "rows.rows_per_file=3", *overrides]))
