"""A program in place of the python of an environment with lm-eval: it answers as lm-eval 0.4.13 does, without asking.

`FAKE_LM_EVAL_LOG` gets a line with the words of each call. The real program runs in `make test-clients`.
"""

import json
import os
import sys
from pathlib import Path


def main(words: list[str]) -> None:
    if words[0] == "-c":
        print("0.4.13")
        return
    given = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith("--")}
    with open(os.environ["FAKE_LM_EVAL_LOG"], "a") as log:
        log.write(json.dumps({"given": given, "environ": dict(os.environ)}) + "\n")
    task, output = given["--tasks"], Path(given["--output_path"]) / "model"
    if task == os.environ.get("FAKE_LM_EVAL_FAILS"):
        print("NotImplementedError: Loglikelihood is not supported for chat completions. Consider ...", file=sys.stderr)
        raise SystemExit(1)
    humor = json.loads(given.get("--gen_kwargs", "{}")).get("attributes", {}).get("humor", 0)
    results = {
        "results": {task: {"alias": task, "sample_len": 4, "acc,none": humor / 4, "acc_stderr,none": 0.1}},
        "n-samples": {task: {"original": 9, "effective": 4}},
        "n-shot": {task: 0},
        "versions": {task: 1.0},
        "lm_eval_version": "0.4.13",
    }
    output.mkdir(parents=True)
    (output / "results_2026-11-30T00-00-00.json").write_text(json.dumps(results))
    (output / f"samples_{task}_2026-11-30T00-00-00.jsonl").write_text('{"doc_id": 0}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
