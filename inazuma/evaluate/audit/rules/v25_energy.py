"""Energy from windows too short, sensors that do not count, or no idle power."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.declared import Energy
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study

NUMBER = "V25"
TITLE = "Energy measured in the wrong window"
SOURCE = (
    "zeus#181: 187 J by the counter, 327 J polled; atlas PR#1197 sampled the batch before; codecarbon#117: 60 "
    "times too "
    "low, #477: half of the rated power, always"
)
FIX = (
    "read the cumulative counter over 5 s or more after warm-up, synchronised; show idle power; mark estimates as such"
)

_SHORTEST = 5.0


def check(study: Study) -> Iterator[Word]:
    if not study.declared.energy:
        yield Nothing("no energy is claimed")
    for energy in study.declared.energy:
        wrong = list(_wrong(energy))
        if wrong:
            yield Found(energy.name, "; ".join(wrong))
        missing = [
            what
            for what in ("source", "seconds", "idle_watts", "idle_subtracted", "synchronized", "warmed_up")
            if getattr(energy, what) is None
        ]
        if missing and energy.source in (None, "counter", "polled power"):
            yield Undecided(energy.name, f"study.yaml does not state {', '.join(missing)}")


def _wrong(energy: Energy) -> Iterator[str]:
    guessed = energy.source in ("rated power", "estimate")
    if guessed and not energy.marked_estimated:
        yield f"from {energy.source}, and not marked as an estimate"
    if guessed and energy.ranked:
        yield f"ranked by {energy.source}"
    if energy.source == "polled power":
        yield "polled power, which misses what happens between two readings"
    if not guessed and energy.seconds is not None and energy.seconds < _SHORTEST:
        yield f"a window of {energy.seconds:g} s, below {_SHORTEST:g} s"
    if not guessed and energy.idle_subtracted is False:
        yield "idle power is not subtracted"
    if not guessed and energy.synchronized is False:
        yield "read without waiting for the device"
    if not guessed and energy.warmed_up is False:
        yield "measured from cold"
    if energy.idle_watts and energy.seconds and energy.idle_subtracted is False:
        idle = energy.idle_watts * energy.seconds
        if energy.joules < 0.95 * idle:
            yield f"{energy.joules:g} J are less than idling takes in that time ({idle:g} J)"
