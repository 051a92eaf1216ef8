"""Part of the prompt was dropped to fit the window, and the answer counts as the model's."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import NOT_EVIDENCE, Study

NUMBER = "V02"
TITLE = "Prompt truncated"
SOURCE = (
    "lm-evaluation-harness drops the start of a prompt that does not fit max_length − max_gen_toks; open-r1#310 and "
    'open-rs#13: "Truncating context to 0 tokens" and a table of results still printed'
)
FIX = "shorten the prompt or use a longer window; items whose prompt was cut are invalid, not wrong"


def check(study: Study) -> Iterator[Word]:
    for log, task, name in study.tasks():
        if not task.samples:
            continue
        # Only Inspect has a stop reason of its own for a window that overflowed.
        known = [s for s in task.samples if s.prompt_tokens_dropped is not None or (s.stop and log.format == "inspect")]
        if not known:
            yield Undecided(name, "the log does not say whether prompts were cut to fit the window")
            continue
        hit = [
            s
            for s in known
            if s.outcome not in NOT_EVIDENCE and not s.error and (s.prompt_tokens_dropped or s.stop == "context")
        ]
        if hit:
            dropped = [s.prompt_tokens_dropped for s in hit if s.prompt_tokens_dropped]
            most = f"; up to {max(dropped)} tokens dropped" if dropped else ""
            items = tuple(s.item for s in hit)
            yield Found(
                name, f"{len(hit)} of {len(task.samples)} prompts or windows overflowed{most}: {some(items)}", items
            )
