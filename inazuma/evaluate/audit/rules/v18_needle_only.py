"""Long context claimed on the finding of needles."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Nothing, Word, some
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.measure import binary, judged, values
from inazuma.runs.intervals import wilson

NUMBER = "V18"
TITLE = "Long context claimed on needles alone"
SOURCE = (
    "HELMET: recall does not predict other long-context tasks over 59 models; NoLiMa: GPT-4o, said to read 128K, holds "
    'up to 8K; sglang#6513: "accuracy held" from a saturated needle test'
)
FIX = (
    "measure at least 4 families (recall, non-lexical match, tracking, aggregation) and report the worst and its length"
)

_FAMILIES = 4
_SATURATED = 0.98
_NAMES = {
    "non-lexical match": r"nolima|non_?lexical|association",
    "tracking": r"(?:^|_)vt(?:_|$)|variable_?tracking|tracking|multi_?hop|hops?(?:_|$)|babilong",
    "aggregation": r"(?:^|_)[cf]we(?:_|$)|aggregat|count|words_?extraction|frequen",
    "order": r"sort|copy|order",
    "reading": r"longbench|scrolls|infinitebench|narrative|long.*(?:qa|summ)|(?:qa|summ).*long|loft",
    "recall": r"niah|needle|passkey|recall|retrieval|multi_?key|kv",
}
_LONG = r"niah|needle|passkey|ruler|nolima|babilong|longbench|infinitebench|helmet|loft|long_?context"


def check(study: Study) -> Iterator[Word]:
    found: dict[str, list[str]] = {}
    saturated, several = [], 0
    for _, task, name in study.tasks():
        label = re.sub(r"[^a-z0-9]+", "_", task.name.casefold())
        kind = task.family or next((family for family, names in _NAMES.items() if re.search(names, label)), None)
        if task.family is None and not re.search(_LONG, label):
            continue
        found.setdefault(kind or "other", []).append(name)
        x = values(judged(task.samples))
        several += 1
        if len(x) and binary(x) and wilson(float(x.sum()), len(x))[0] > _SATURATED:
            saturated.append(name)
    if not found:
        yield Nothing("no long-context task")
        return
    if len(found) < _FAMILIES:
        kinds = some([f"{kind} ({some(tasks, 2)})" for kind, tasks in found.items()])
        yield Found("long context", f"{len(found)} of {_FAMILIES} families are measured: {kinds}")
    if several and len(saturated) == several:
        yield Found(
            "long context", f"every task is saturated, so nothing is told apart: {some(saturated)}", tuple(saturated)
        )
