"""A pipeline's progress as metrics of Ray, for Prometheus: names and meanings. `cluster.progress` logs the same."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

METRICS = {
    "rows": "Rows of the pipeline.",
    "rows_done": "Rows that are done, those of earlier tries included.",
    "rows_per_s": "Rows done a second by this try.",
    "tokens_per_s": "Tokens read a second by this try.",
    "packs_filled": "Tokens over what the packs could hold, 0 to 1; the rest is padding waste.",
    "eta_seconds": "Seconds that are left at the speed so far.",
}


class PipelineMetrics:
    """Gauges of one pipeline, set every few seconds."""

    def __init__(self, what: str):
        self._tags = {"pipeline": what}
        self._gauges = {
            name: Gauge(f"steerlm_pipeline_{name}", text, tag_keys=("pipeline",)) for name, text in METRICS.items()
        }

    def __call__(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._gauges[name].set(value, self._tags)
