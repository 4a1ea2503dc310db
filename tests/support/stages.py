"""Stages that are plain functions, and the run that they belong to."""

from pathlib import Path

from cluster.settings.load import load
from data.stage_metrics import StageMetrics
from data.storage import Storage
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage

DEMO = str(Path(__file__).parent.parent.parent / "jobs" / "presets" / "demo.yaml")


class Calls(StageMetrics):
    n: int


def demo_run(tmp_path: Path, *overrides: str) -> Run:
    """The demo's run at `tmp_path`/demo."""
    return Run(load(Preset, DEMO, [f"storage={tmp_path}", *overrides]))


def stage_of(name: str, calls: list[str], needs: tuple[str, ...] = ()) -> Stage:
    """Notes its name in `calls`; dies if "boom" is among them."""

    def work(run: Run, folder: Storage) -> Calls:
        calls.append(name)
        (folder / "out.json").write_json(len(calls))
        if calls.count("boom") > 0:
            raise RuntimeError("killed")
        return Calls(n=len(calls))

    return Stage(name, needs, lambda preset: {"seed": preset.seed}, work)
