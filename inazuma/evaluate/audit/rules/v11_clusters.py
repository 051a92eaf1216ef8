"""Items of one passage, template or seed count as independent."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.measure import scored, values
from inazuma.runs.intervals import standard_error

NUMBER = "V11"
TITLE = "Clustered items treated as independent"
SOURCE = (
    "Miller (arXiv 2411.00640), appendix A; 50 clusters of 10 items: a nominal 5 % test fires in 12, 23 and 42 % at an "
    "intra-class correlation of 0.05, 0.2 and 0.5"
)
FIX = "give every item its cluster (passage, template, seed, document; repeats of one item too), use a clustered error"

_MATERIAL = 1.1


def check(study: Study) -> Iterator[Word]:
    if not study.logs:
        yield Nothing("no evaluation log")
    for _, task, name in study.tasks():
        samples = scored(task.samples)
        if len(samples) < 2 or not task.scores:
            continue
        repeated = len({sample.item for sample in samples}) < len(samples)
        if not repeated and all(sample.cluster is None for sample in samples):
            yield Undecided(name, "the log does not say which items belong together")
            continue
        clusters = [sample.cluster or sample.item for sample in samples]
        if len(set(clusters)) == len(clusters):
            continue
        x = values(samples)
        naive, right = standard_error(x), standard_error(x, clusters)
        reported = task.scores[0].stderr
        interval = task.scores[0].interval
        if reported is None and interval is not None:
            reported = (interval[1] - interval[0]) / 3.92
        if reported is None or not naive > 0:
            yield Undecided(name, "no standard error is reported that could be checked")
        elif right > _MATERIAL * naive and abs(reported - naive) < abs(reported - right):
            count = len(set(clusters))
            yield Found(
                name,
                f"{len(samples)} samples lie in {count} clusters: the reported standard error {reported:.4f} is "
                f"that of "
                f"independent items ({naive:.4f}), the clustered one is {right:.4f}",
            )
