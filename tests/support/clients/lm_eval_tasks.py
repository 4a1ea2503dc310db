"""Two tasks of lm-eval on local rows: one writes an answer, one compares the likelihoods of choices.

Also runs in lm-eval's own environment, so it needs the standard library alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WRITTEN, CHOSEN = "owls_written", "owls_chosen"
TASKS = {
    WRITTEN: """\
task: owls_written
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12}
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
metric_list: [{metric: exact_match}]
""",
    CHOSEN: """\
task: owls_chosen
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
""",
}


def write_tasks(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A file for each task in `folder`, which lm-eval takes as --include_path, beside the `rows` of both.

    A row has a question, choices, and the number of the right one as answer.
    """
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("ROWS", str(file)))
