"""The baseline of training: TRL's SFTTrainer. Runs in an environment that has TRL; imports nothing of ours.

python trl_sft.py SETTINGS.json       writes `metrics.json` and `model/` into the folder `output` of the settings
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """CPU and wall-clock seconds from the first step to the end of the last."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.cpu_s, self.wall_s = -time.process_time(), -time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.cpu_s += time.process_time()
        self.wall_s += time.perf_counter()


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text())
    output = settings["output"]
    torch.set_num_threads(1)
    rows = load_dataset("parquet", data_files=settings["rows"], split="train", cache_dir=f"{output}/cache")
    targets = sum(map(sum, rows["completion_mask"]))
    clock = Clock()
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        ),
        args=trl.SFTConfig(
            output_dir=f"{output}/trainer",
            num_train_epochs=1,
            completion_only_loss=True,
            bf16=False,
            gradient_checkpointing=False,  # as in our training; TRL's default computes every layer twice
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **settings["arguments"],
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(settings["model"], trust_remote_code=False),
        callbacks=[clock],
    )
    trainer.train()
    trainer.model.save_pretrained(f"{output}/model")
    metrics = {
        "version": trl.__version__,
        "steps": trainer.state.global_step,
        "cpu_seconds": clock.cpu_s,
        "seconds": clock.wall_s,
        "targets": targets,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(output, "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1])
