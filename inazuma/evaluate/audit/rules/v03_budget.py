"""No correct answer fits the output limit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word, some
from inazuma.evaluate.audit.log import Sample, Study

NUMBER = "V03"
TITLE = "Budget that no correct answer fits"
SOURCE = (
    "Tower of Hanoi in The Illusion of Thinking (Shojaee et al. 2025): N discs take 2^N − 1 moves, at 5 to 10 tokens "
    "each; a limit of 64,000 tokens forbids N = 14 and, at 10 tokens a move, N = 13"
)
FIX = "refuse items whose shortest answer exceeds the limit before running, or raise the limit"

_TOKENS_A_MOVE = 5
"""Fewer than any tokenizer needs for a move such as [12, 0, 2]."""
_HANOI = re.compile(r"hanoi", re.IGNORECASE)
_DISCS = re.compile(r"\b(\d{1,3})\s*(?:-\s*)?dis[ck]s?\b|\bN\s*=\s*(\d{1,3})\b", re.IGNORECASE)
_LISTS_MOVES = re.compile(r"\bmoves?\b", re.IGNORECASE)
_PROGRAM = re.compile(r"\b(?:program|function|code|how many|number of moves)\b", re.IGNORECASE)
_REASONED = ("####", "\\boxed")


def check(study: Study) -> Iterator[Word]:
    tasks = [(task, name) for _, task, name in study.tasks() if task.generates and task.samples]
    if not tasks:
        yield Nothing("no task generates text")
    for task, name in tasks:
        needs = [(sample, shortest(sample)) for sample in task.samples if sample.max_tokens is not None]
        known = [(sample, need) for sample, need in needs if need is not None]
        if not known:
            missing = "output limits" if not needs else "shortest answers"
            yield Undecided(name, f"the log holds no {missing} of its items")
            continue
        over = [(s, need) for s, need in known if need > (s.max_tokens or 0) and s.outcome != "invalid_item"]
        if over:
            items = tuple(sample.item for sample, _ in over)
            worst, need = max(over, key=lambda pair: pair[1] / max(1, pair[0].max_tokens or 0))
            yield Found(
                name,
                f"{len(over)} of {len(task.samples)} items have no answer that fits: {some(items)}; {worst.item} takes "
                f"at least {need} tokens and may have {worst.max_tokens}",
                items,
            )


def shortest(sample: Sample) -> int | None:
    """Fewest tokens of a correct answer: as declared, of a known puzzle, or the words of the target."""
    if sample.min_answer_tokens is not None:
        return sample.min_answer_tokens
    asked = sample.question or sample.prompt or ""
    moves = _HANOI.search(asked) and _LISTS_MOVES.search(asked) and not _PROGRAM.search(asked)
    if moves and (found := _DISCS.search(asked)):
        return _TOKENS_A_MOVE * (2 ** int(found[1] or found[2]) - 1)
    if sample.target and sample.choices is None and not any(sign in sample.target for sign in _REASONED):
        return len(sample.target.split())
    return None
