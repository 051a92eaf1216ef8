"""A model graded the answers, and nothing shows that it can."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inazuma.evaluate.audit.declared import Judge
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study

NUMBER = "V16"
TITLE = "Judge bias"
SOURCE = (
    "MT-Bench: GPT-4 keeps its verdict in 65 % of pairs when their order is swapped; deepeval#1265, #1146: one answer "
    "judged 0.2 and 0.7"
)
FIX = "judge in both orders, by another family, several times, and against 100 human labels; better, verify answers"

_AGREEMENT, _LABELS, _REPEATS = 0.8, 100, 2


def check(study: Study) -> Iterator[Word]:
    declared = {judge.model: judge for judge in study.declared.judges}
    judged = [(task.judge, log.model, name) for log, task, name in study.tasks() if task.judge]
    for judge, model, name in judged:
        if model is not None and family(judge) == family(model):
            yield Found(name, f"{judge} judges {model}: the same family")
        elif judge not in declared:
            yield Undecided(name, f"{judge} judged; orders, repeats and human labels are not stated in study.yaml")
    for judge in study.declared.judges:
        yield from _declared(judge)
    unknown = [name for _, task, name in study.tasks() if task.scorer is None and task.samples]
    if unknown and not judged and not declared:
        yield Undecided(unknown[0], "the log does not name its scorer")
    elif not judged and not declared:
        yield Nothing("no model graded answers")


def family(model: str) -> str:
    """`openai/gpt-4o-mini` → gpt: the name's last part up to the first digit or sign."""
    last = re.split(r"[/:]", model.casefold())[-1] or model.casefold()
    found = re.match(r"[a-z]+", last)
    return found[0] if found else last


def _declared(judge: Judge) -> Iterator[Word]:
    own = judge.family or family(judge.model)
    kin = [model for model in judge.judged if own.casefold() in (family(model), model.casefold())]
    if kin:
        yield Found(judge.model, f"judges {kin[0]}, of its own family")
    if judge.pairwise and judge.both_orders is False:
        yield Found(judge.model, "judges pairs in one order only")
    if judge.pairwise and judge.order_agreement is not None and judge.order_agreement < _AGREEMENT:
        yield Found(
            judge.model, f"keeps its verdict in {judge.order_agreement:.0%} of pairs when their order is swapped"
        )
    if judge.human_labels is not None and judge.human_labels < _LABELS:
        yield Found(judge.model, f"was compared with {judge.human_labels} human labels; at least {_LABELS} are asked")
    if judge.repeats is not None and judge.repeats < _REPEATS:
        yield Found(judge.model, "judged once; nothing shows how much its verdicts vary")
    missing = [
        what
        for what, value in (
            ("both_orders", judge.both_orders if judge.pairwise else True),
            ("human_labels", judge.human_labels),
            ("repeats", judge.repeats),
        )
        if value is None
    ]
    if missing:
        yield Undecided(judge.model, f"study.yaml does not state {', '.join(missing)}")
