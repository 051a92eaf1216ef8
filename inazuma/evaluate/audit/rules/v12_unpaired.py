"""Two models answered the same items, and the test ignores that; or they answered different items."""

from __future__ import annotations

import math
from collections.abc import Iterator

from inazuma.evaluate.audit.compared import pairs
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.measure import paired_p, unpaired_p

NUMBER = "V12"
TITLE = "Unpaired test on shared items"
SOURCE = (
    "lm-evaluation-harness scripts/model_comparator.py (#3831, PR#3868): of 500 items and a gain of 4 points the "
    "unpaired z test finds 20 %, the paired test 58 %"
)
FIX = "align the items and test the differences (exact McNemar for 0/1 scores, paired t or bootstrap else)"

_SAME, _APART = 0.005, 0.02
"""In powers of ten of p: a p of three digits agrees, a p that differs by more than a twentieth does not."""


def check(study: Study) -> Iterator[Word]:
    claims = list(pairs(study))
    if not claims:
        several = len({log.model for log in study.logs}) > 1
        yield (
            Undecided("comparison", "several models are here, and study.yaml does not say how they were compared")
            if several
            else Nothing("nothing is compared")
        )
    for pair in claims:
        if pair.x is None:
            yield Undecided(pair.name, "the items of both sides are not here")
        elif pair.alone:
            yield Found(pair.name, f"compared on different items: {len(pair.x)} shared, {pair.alone} only on one side")
        elif pair.claim.test == "unpaired":
            yield Found(
                pair.name,
                f"an unpaired test (p = {unpaired_p(pair.x, pair.y):.3g}) on {len(pair.x)} shared items; the "
                f"paired one "
                f"gives p = {paired_p(pair.x, pair.y):.3g}",
            )
        elif pair.claim.p_value is not None and pair.claim.test is None:
            reported, right, wrong = (
                math.log10(max(p, 1e-12))
                for p in (pair.claim.p_value, paired_p(pair.x, pair.y), unpaired_p(pair.x, pair.y))
            )
            if abs(reported - wrong) < _SAME and abs(reported - right) > _APART:
                yield Found(
                    pair.name,
                    f"the reported p = {pair.claim.p_value:.3g} is the unpaired test's; the paired one gives "
                    f"{10**right:.3g}",
                )
        elif pair.claim.test is None:
            yield Undecided(pair.name, "study.yaml names neither the test nor its p value")
