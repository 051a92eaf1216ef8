"""Many comparisons, each judged as if it were the only one."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.compared import pairs
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.measure import paired_p
from inazuma.runs.intervals import holm

NUMBER = "V13"
TITLE = "Many comparisons without correction"
SOURCE = "suites of 20 to 60 tasks: at 5 % each, one in 20 differences of nothing looks significant (Holm 1979)"
FIX = "name one primary figure beforehand, or correct the family (Holm) and claim what is left"

_LEVEL = 0.05


def check(study: Study) -> Iterator[Word]:
    claims = list(pairs(study))
    if len(claims) < 2:
        yield Nothing("fewer than two comparisons")
        return
    p = []
    for pair in claims:
        value = pair.claim.p_value
        if value is None and pair.x is not None and len(pair.x):
            value = paired_p(pair.x, pair.y)
        p.append(value)
    unknown = [pair.name for pair, value in zip(claims, p, strict=True) if value is None]
    if unknown:
        yield Undecided(
            "comparisons", f"{len(unknown)} of {len(claims)} have no p value and no items to compute it from"
        )
        return
    for pair, value, adjusted in zip(claims, p, holm(p), strict=True):
        uncorrected = pair.claim.correction in (None, "none")
        if uncorrected and pair.claim.claim in ("better", "worse") and value < _LEVEL <= adjusted:
            yield Found(
                pair.name,
                f"claimed {pair.claim.claim} at p = {value:.3g}, one of {len(claims)} comparisons; corrected (Holm) "
                f"p = {adjusted:.3g}",
            )
