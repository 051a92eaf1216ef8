"""The best of several runs is reported, or some runs are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inazuma.errors import UserError
from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Study
from inazuma.runs import Run

NUMBER = "V14"
TITLE = "Best of several runs, or runs left out"
SOURCE = (
    "The Leaderboard Illusion (arXiv 2504.20879): up to 27 private variants; best of 5 seeds shows an improvement that "
    "is none in 27 % of cases, of 20 in 48 %"
)
FIX = "report every run that was launched, crashed ones too: mean and interval over seeds, and how many there are"

_SEEDS = ("seed", "seeds", "data_seed", "model_seed")


def check(study: Study) -> Iterator[Word]:
    yield from _declared(study)
    yield from _ledgers(study)
    if not study.declared.selections and not study.started:
        yield Undecided("runs", "neither a ledger nor study.yaml says how many runs were launched")


def _declared(study: Study) -> Iterator[Word]:
    for one in study.declared.selections:
        if one.statistic == "best" and (one.launched or len(one.values)) > 1:
            yield Found(one.result, f"the best of {one.launched or len(one.values)} runs is reported")
        elif one.launched is not None and one.values and one.launched > len(one.values):
            yield Found(one.result, f"{one.launched} runs were launched and {len(one.values)} are reported")
        elif one.launched is not None and one.launched > 1 and one.statistic == "single":
            yield Found(one.result, f"one of {one.launched} runs is reported")
        elif len(one.values) > 1 and one.reported is not None and one.statistic != "all":
            mean = sum(one.values) / len(one.values)
            best = min(one.values, key=lambda value: abs(value - one.reported))
            spread = max(one.values) - min(one.values)
            ordered = sorted(one.values)
            median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
            rounded = 0.51 * 10.0 ** -_digits(one.reported)
            right = min(abs(one.reported - mean), abs(one.reported - median)) <= rounded
            if spread > 0 and not right and abs(one.reported - best) <= rounded:
                rank = sum(value > best for value in one.values) + 1
                yield Found(
                    one.result,
                    f"{one.reported:.4g} is reported, number {rank} of {len(one.values)} runs; their mean is "
                    f"{mean:.4g}",
                )
        elif one.launched is None and one.statistic is None:
            yield Undecided(one.result, "study.yaml does not say how many runs were launched")


def _digits(value: float) -> int:
    """Decimal places that a figure was given with."""
    return len(f"{value!r}".partition(".")[2]) if "e" not in f"{value!r}" else 9


def _ledgers(study: Study) -> Iterator[Word]:
    gone = [name for name in dict.fromkeys(study.started) if not Path(name).is_dir()]
    if gone:
        names = tuple(Path(name).name for name in gone)
        yield Found("runs", f"the ledger saw {len(gone)} runs start whose folders are gone: {some(names)}", names)
    read = {log.path.resolve() for log in study.logs}
    for log in study.logs:
        if log.format != "inazuma":
            continue
        twins = []
        for name in dict.fromkeys(study.started):
            if Path(name).is_dir() and Path(name).resolve() not in read and _same_but_seed(Path(name), log.settings):
                twins.append(Path(name).name)
        if twins:
            text = f"one of {len(twins) + 1} runs that differ only in their seed; not shown: {some(twins)}"
            yield Found(log.name, text, tuple(twins))


def _same_but_seed(folder: Path, config: object) -> bool:
    try:
        other = Run.open(folder).manifest["config"]
    except UserError:
        return False
    return _without_seeds(other) == _without_seeds(config)


def _without_seeds(config: object) -> object:
    return {k: v for k, v in config.items() if k not in _SEEDS} if isinstance(config, dict) else config
