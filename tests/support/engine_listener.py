"""A listener that keeps what an engine tells it."""

import threading

from actors.generation.protocol import GenerationStep


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.steps: list[GenerationStep] = []
        self.started, self.ended = threading.Event(), threading.Event()

    def __call__(self, step: GenerationStep) -> None:
        self.steps.append(step)
        self.started.set()
        if step.finish:
            self.ended.set()
