"""Training comes out otherwise when it is evaluated in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Study

NUMBER = "V20"
TITLE = "Evaluation changes training"
SOURCE = (
    "pytorch#122697; with PyTorch 2.13 an evaluation loop changed the final weights by up to 0.013, because an "
    "unseeded "
    "DataLoader draws from the global random state"
)
FIX = "give every DataLoader its own torch.Generator and test that training with and without evaluation is bit-equal"

_EVALUATION = ("valid", "evaluat", "eval_")


def check(study: Study) -> Iterator[Word]:
    for twins in study.declared.training:
        if twins.with_evaluation != twins.without_evaluation:
            one, other = twins.with_evaluation[:12], twins.without_evaluation[:12]
            yield Found("training", f"final weights with evaluation {one}, without {other}")
    compared = bool(study.declared.training)
    for a, b in combinations(study.training, 2):
        if a.config == b.config or _trained(a.config) != _trained(b.config):
            continue
        shared = sorted(a.losses.keys() & b.losses.keys())
        if not shared:
            continue
        compared = True
        if different := [step for step in shared if a.losses[step] != b.losses[step]]:
            step = different[0]
            yield Found(
                f"{a.path.name}, {b.path.name}",
                f"the same training but for its evaluation: the loss of step {step} is {a.losses[step]!r} and "
                f"{b.losses[step]!r} ({len(different)} of {len(shared)} steps differ)",
            )
    if not compared:
        yield (
            Undecided("training", "no second run without evaluation shows that evaluating changes nothing")
            if study.training
            else Nothing("no training run")
        )


def _trained(config: Any) -> Any:
    """The configuration without what says when and on what to evaluate."""
    if isinstance(config, Mapping):
        return {k: _trained(v) for k, v in config.items() if not str(k).startswith(_EVALUATION)}
    return [_trained(value) for value in config] if isinstance(config, list) else config
