"""Speed without the quality of the same run, without a fair opponent, or in operations instead of seconds."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.declared import Speed
from inazuma.evaluate.audit.finding import Found, Nothing, Word
from inazuma.evaluate.audit.log import Study

NUMBER = "V23"
TITLE = "Speed without accuracy, operations without seconds"
SOURCE = (
    "InferenceX PR#258: throughput won by cutting answers short; transformers#18234: Longformer and BigBird no faster; "
    "Block-Sparse-Attention#8, Rectified-SpaAttn#1: slower than dense"
)
FIX = "time and score the same run; give p50, p95, p99 against dense attention at the same shape, and where they cross"

_PERCENTILES = ("p50", "p95", "p99")


def check(study: Study) -> Iterator[Word]:
    if not study.declared.speed:
        yield Nothing("no speed is claimed")
    for speed in study.declared.speed:
        wrong = list(_wrong(speed))
        if wrong:
            yield Found(speed.name, "; ".join(wrong))


def _wrong(speed: Speed) -> Iterator[str]:
    if speed.measure == "flops":
        yield "operations are counted, no time was measured"
    if speed.run is None or speed.quality_run is None:
        yield "no run is named that speed and quality come from"
    elif speed.run != speed.quality_run:
        yield f"the speed is run {speed.run}'s, the quality run {speed.quality_run}'s"
    if speed.speedup is not None and speed.baseline is None:
        yield f"{speed.speedup:g} times faster than what is not said"
    if speed.measure == "seconds" and (missing := [p for p in _PERCENTILES if p not in speed.percentiles]):
        yield f"no {', '.join(missing)}"
    if speed.sparse and speed.crossover_length is None:
        yield "sparse, and no length is measured from which it is faster than dense"
