"""Errors of the infrastructure count as wrong answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import NOT_EVIDENCE, Sample, Study

NUMBER = "V21"
TITLE = "Infrastructure errors scored as wrong"
SOURCE = "Anthropic, February 2026: 6 points on Terminal-Bench 2.0 from resources alone, errors from 5.8 to 0.5 %"
FIX = "type these samples as infrastructure errors, run them again, and score only what was answered"

_LONGEST = 4000
_ERRORS = re.compile(
    r"""\A\s*(?:Traceback\ \(most\ recent\ call\ last\)|Error\ code:\ \d{3}|(?:HTTP(?:/1\.1)?\ )?(?:429|50[0234])\b[\ :]
    |\{\s*"error"\s*:|<(?:!DOCTYPE\ )?html|(?:\w+\.)*(?:\w*(?:Timeout|Connection|RateLimit|APIStatus|OutOfMemory)\w*
    (?:Error|Exception)?)\b\s*[:(]|CUDA\ (?:out\ of\ memory|error)|\[?(?:API\ )?ERROR\]?[:\s]|upstream\ connect\ error
    |(?:Request|Connection|Read)\ timed\ out
    |Service\ Unavailable|Bad\ Gateway|Gateway\ Time-?out|Too\ Many\ Requests)""",
    re.VERBOSE,
)


def check(study: Study) -> Iterator[Word]:
    for _, task, name in study.tasks():
        if not task.samples:
            continue
        hit = [s for s in task.samples if _counted(s) and (s.error or _is_error(s.answer))]
        if hit:
            first = hit[0]
            said = " ".join((first.error or first.answer or "").split())[:100]
            items = tuple(s.item for s in hit)
            yield Found(
                name,
                f"{len(hit)} of {len(task.samples)} scored samples are errors: {some(items)}; {first.item}: {said}",
                items,
            )
        elif task.generates and all(s.answer is None and s.outcome is None for s in task.samples):
            yield Undecided(name, "the log holds no answers, so errors among them do not show")


def _counted(sample: Sample) -> bool:
    """Whether the sample weighs in the score."""
    return sample.score is not None and sample.outcome not in NOT_EVIDENCE and sample.score < 1


def _is_error(answer: str | None) -> bool:
    return answer is not None and len(answer) <= _LONGEST and _ERRORS.match(answer) is not None
