"""The baseline was tuned less, stopped earlier or given less."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.declared import Arm
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study

NUMBER = "V15"
TITLE = "Weak, untuned baseline"
SOURCE = (
    "Wen et al., Fantastic pretraining optimizers (arXiv 2509.02046): speed-ups of 1.4 to 2 become 1.1 once the "
    "baseline "
    "is tuned, and rankings turn before the end of the schedule"
)
FIX = "give every arm as many trials over as wide a search, look at the edges, compare at the end of equal budgets"

_TRIALS = 0.9
_BUDGET = 0.05


def check(study: Study) -> Iterator[Word]:
    arms = study.declared.arms
    ours, baselines = ([arm for arm in arms if arm.role == role] for role in ("ours", "baseline"))
    if not arms:
        yield (
            Undecided("arms", "study.yaml does not say how much each side was tuned")
            if study.declared.comparisons
            else Nothing("nothing is compared with a baseline")
        )
        return
    if not ours or not baselines:
        yield Undecided("arms", "study.yaml names only one side")
        return
    for arm in arms:
        yield from _edges(arm)
        if arm.steps is not None and arm.planned_steps is not None and arm.steps < arm.planned_steps:
            yield Found(arm.name, f"compared at step {arm.steps} of {arm.planned_steps}, before its schedule ends")
    for mine in ours:
        for baseline in baselines:
            yield from _unequal(mine, baseline)


def _edges(arm: Arm) -> Iterator[Word]:
    for setting, best in arm.chosen.items():
        tried = sorted(set(arm.searched.get(setting, [])))
        if len(tried) > 1 and best in (tried[0], tried[-1]):
            edge = "lowest" if best == tried[0] else "highest"
            yield Found(arm.name, f"the best {setting}, {best:g}, is the {edge} of {len(tried)} values tried")


def _unequal(ours: Arm, baseline: Arm) -> Iterator[Word]:
    name = f"{ours.name} against {baseline.name}"
    if ours.trials is None or baseline.trials is None:
        yield Undecided(name, "study.yaml does not give the number of trials of both")
    elif baseline.trials < _TRIALS * ours.trials:
        yield Found(name, f"the baseline was tuned in {baseline.trials} trials, ours in {ours.trials}")
    budgets = {}
    for what in ("tokens", "flops", "seconds"):
        mine, other = getattr(ours, what), getattr(baseline, what)
        if mine is not None and other is not None:
            budgets[what] = (mine, other)
    # Equal in one of them is a fair comparison at that budget.
    if budgets and all(other < (1 - _BUDGET) * mine for mine, other in budgets.values()):
        said = ", ".join(f"{other:g} {what} against {mine:g}" for what, (mine, other) in budgets.items())
        yield Found(name, f"the baseline had less of everything that is stated: {said}")
