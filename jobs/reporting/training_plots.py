"""The loss curves of trainings as one picture: what was trained on, and what was held out."""

from collections.abc import Mapping

import matplotlib
import matplotlib.figure

from data.storage import Storage
from jobs.reporting.png import save_png
from jobs.runner.stage import Metrics

PANEL_INCHES = (4.6, 3.2)
TRAINED, HELD_OUT = "#1f5fa8", "#e08214"
"""Blue and orange keep apart for every kind of colour blindness."""


def draw_losses(trainings: Mapping[str, Metrics], target: Storage) -> None:
    """A PNG with a panel for each training, by name: loss by step, and the validation losses with the step that was saved."""
    width, height = PANEL_INCHES
    figure = matplotlib.figure.Figure(figsize=(width * len(trainings), height), layout="constrained")
    panels = figure.subplots(1, len(trainings), squeeze=False).ravel()
    for axes, (name, training) in zip(panels, trainings.items(), strict=True):
        axes.plot(
            [p["step"] for p in training["losses"]],
            [p["loss"] for p in training["losses"]],
            color=TRAINED,
            label="trained on",
        )
        held_out = training["validations"]
        if held_out:
            axes.plot(
                [v["step"] for v in held_out],
                [v["loss"] for v in held_out],
                color=HELD_OUT,
                marker="o",
                markersize=4,
                label="held out",
            )
            axes.axvline(
                training["saved_step"], color="0.7", linestyle=":", label=f"saved: step {training['saved_step']:,}"
            )
        axes.set_title(name, fontsize=11, fontweight="bold")
        axes.set(xlabel="step", ylabel="mean loss over targets")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    save_png(figure, target)
