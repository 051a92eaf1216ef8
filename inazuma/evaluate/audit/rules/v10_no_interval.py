"""A score without an interval, or a claimed difference that so few items cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator

from inazuma.evaluate.audit.compared import pairs
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.measure import binary, paired_p, percent, values
from inazuma.runs.intervals import minimum_detectable_effect, standard_error, wilson

NUMBER = "V10"
TITLE = "No interval, or too few items for the claim"
SOURCE = (
    "Miller, Adding Error Bars to Evals (arXiv 2411.00640); Bowyer et al. (arXiv 2503.01747); AIME-24 has 30 items: "
    "15 right are 33 to 67 %"
)
FIX = "report an interval (Wilson for 0/1 scores) and n; claim a difference only above the smallest detectable one"

_LEVEL = 0.05


def check(study: Study) -> Iterator[Word]:
    if not study.logs:
        yield Nothing("no evaluation log")
    for _, task, name in study.tasks():
        if not task.scores:
            yield Undecided(name, "the log reports no score")
            continue
        declared = name in study.declared.intervals or task.name in study.declared.intervals
        if declared or any(score.stderr is not None or score.interval for score in task.scores):
            continue
        x = values(task.samples)
        would = ""
        if len(x) and binary(x):
            low, high = wilson(float(x.sum()), len(x))
            would = f"; of {len(x)} items, {percent(x.mean())} lies between {percent(low)} and {percent(high)}"
        yield Found(
            name, f"{task.scores[0].metric} {task.scores[0].value:.4g} has neither standard error nor interval{would}"
        )
    for pair in pairs(study):
        if pair.claim.claim not in ("better", "worse"):
            continue
        if pair.x is None or len(pair.x) < 2:
            yield Undecided(pair.name, "the items of both sides are not here")
            continue
        smallest = minimum_detectable_effect(standard_error(pair.x - pair.y))
        # A difference that the paired test finds was shown, however few items it took.
        unseen = paired_p(pair.x, pair.y) >= _LEVEL
        if unseen and abs(pair.claim.difference) < smallest:
            n = math.ceil(len(pair.x) * (smallest / max(abs(pair.claim.difference), 1e-9)) ** 2)
            yield Found(
                pair.name,
                f"claimed {pair.claim.claim} by {percent(abs(pair.claim.difference))}; {len(pair.x)} items show "
                f"no less "
                f"than {percent(smallest)} (80 % power), this would take about {n}",
            )
