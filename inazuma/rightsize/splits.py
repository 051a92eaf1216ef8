"""Who learns and who tests: four splits that no duplicate and no group crosses, and that time does not run backwards
in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from inazuma.errors import UserError
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task

SPLITS = ("train", "validation", "calibration", "test")
_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "calib": "calibration"}
NEAR = 0.7
"""Jaccard similarity of two texts' 5-letter pieces from which on they are near duplicates."""
_PIECE, _BANDS = 5, (32, 3)
"""32 bands of 3 hashes: of pairs with that similarity (1 - NEAR^3)^32, two in a million, are not looked at."""
_FACTORS = np.random.Generator(np.random.PCG64(0)).integers(1 << 64, size=_PIECE + 1, dtype=np.uint64)
FEWEST_TESTED = 10
LARGEST_SET = 0.1
"""The share of all rows up to which near duplicates are kept together."""


class Finding(NamedTuple):
    """Something about the data that a reader must know."""

    kind: str
    message: str
    rows: list[int]
    """Up to 20 rows of the file, as examples."""


@dataclass
class Splits:
    """The examples of each split, by name, and what was found on the way."""

    parts: dict[str, list[Example]]
    findings: list[Finding] = field(default_factory=list)

    def __getitem__(self, name: str) -> list[Example]:
        return self.parts[name]


def make_splits(task: Task, examples: Sequence[Example]) -> Splits:
    """Shares the examples out as the task says.

    Duplicates (the same text but for case and spaces, or near: Jaccard similarity of 5-letter pieces at least 0.7 by
    MinHash) and groups stay on one side. Where the file itself says the split, training rows that a test row repeats
    are left out of training; where time decides, later copies are left out. Near duplicates that are over a tenth of
    all rows, as where texts follow one template, are shared out all the same, and a finding says so.

    Raises:
        UserError: a split with nothing in it.
    """
    findings: list[Finding] = []
    twins = []
    for members in duplicate_sets(examples):
        if len(members) <= LARGEST_SET * len(examples):
            twins.append(members)
            continue
        # Kept together they would be most of some split, or leave nothing to another.
        twins += _exact(examples, members)
        message = f"{len(members)} rows are variations of one text; they are on both sides of the split"
        findings.append(_found("alike", message, examples, members))
    repeated = [i for members in twins for i in members[1:]]
    if repeated:
        contradicting = [m for m in twins if len({examples[i].target for i in m}) > 1]
        findings.append(
            _found("duplicates", f"{len(repeated)} rows repeat another row's text, or nearly", examples, repeated)
        )
        if contradicting:
            rows = [i for members in contradicting for i in members]
            message = f"{len(contradicting)} sets of the same or nearly the same text have different answers"
            findings.append(_found("contradictions", message, examples, rows))
    if task.split is not None:
        parts = _given(examples, twins, findings, task)
    elif task.time is not None:
        parts = _by_time(examples, repeated, findings, task)
    else:
        parts = _shared_out(examples, twins, task)
    for name in SPLITS:
        fewest = FEWEST_TESTED if name == "test" else 1
        if len(parts[name]) < fewest:
            raise UserError(f"{task.data}: the {name} split gets {len(parts[name])} rows; label more, or change shares")
    if task.kind == "classification":
        unseen = {e.target for e in parts["test"]} - {e.target for e in parts["train"]}
        if unseen:
            rows = [i for i, e in enumerate(examples) if e.target in unseen]
            message = f"labels tested and never trained on: {', '.join(sorted(unseen)[:5])}"
            findings.append(_found("unseen labels", message, examples, rows))
    return Splits(parts, findings)


def _found(kind: str, message: str, examples: Sequence[Example], places: Sequence[int]) -> Finding:
    return Finding(kind, message, [examples[i].row for i in places[:20]])


# -------------------------------------------------------------------------------------------------- duplicates


def duplicate_sets(examples: Sequence[Example]) -> list[list[int]]:
    """Sets of places whose texts are the same or nearly so, each of at least two, in order."""
    # Exact ones first: only one of each set needs a MinHash.
    first: dict[str, int] = {}
    pairs = [(first.setdefault(normal(example.text), i), i) for i, example in enumerate(examples)]
    permutations = _BANDS[0] * _BANDS[1]
    index = MinHashLSH(num_perm=permutations, params=_BANDS)
    sketches: dict[int, np.ndarray] = {}
    for text, i in first.items():
        pieces = pieces_of(text)
        sketch = MinHash(num_perm=permutations, seed=1, hashfunc=int)
        sketch.update_batch(pieces)
        for j in index.query(sketch):
            # The sketch only proposes: the similarity itself decides.
            shared = len(np.intersect1d(pieces, sketches[j], assume_unique=True))
            if shared >= NEAR * (len(pieces) + len(sketches[j]) - shared):
                pairs.append((j, i))
        sketches[i] = pieces
        index.insert(i, sketch)
    return [members for members in _joined(len(examples), pairs) if len(members) > 1]


def _exact(examples: Sequence[Example], members: Sequence[int]) -> list[list[int]]:
    """Of these the sets whose texts are the same but for case and spaces, each of at least two."""
    sets: dict[str, list[int]] = defaultdict(list)
    for i in members:
        sets[normal(examples[i].text)].append(i)
    return [same for same in sets.values() if len(same) > 1]


def pieces_of(text: str) -> np.ndarray:
    """The set of a text's 5-letter pieces, or of the whole of a shorter one, as sorted 32-bit hashes `[pieces]`.

    Sets of texts would take a hundred times their memory. The hash is the upper half of a sum modulo 2^64 of letters
    times random numbers (vector multiply-shift: Thorup, arXiv 1504.06804, section 3): two pieces have the same one
    with a probability of 2^-32.
    """
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = max(1, len(letters) - _PIECE + 1)
    letters = np.pad(letters, (0, count + _PIECE - 1 - len(letters)))
    sums = sum((letters[k : k + count] * number for k, number in enumerate(_FACTORS[1:])), start=_FACTORS[0])
    return np.unique((sums >> np.uint64(32)).astype(np.uint32))


def _joined(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The sets into which pairs tie the places 0 to count - 1, in the order of their first members."""
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    sets: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels.tolist()):
        sets[label].append(i)
    return list(sets.values())


def normal(text: str) -> str:
    """A text without what does not make it another: case and spaces."""
    return " ".join(text.casefold().split())


# ------------------------------------------------------------------------------------------------------ sharing out


def _units(examples: Sequence[Example], twins: list[list[int]]) -> list[list[int]]:
    """Places that must stay together: groups, and what duplicates tie to them."""
    groups: dict[str, int] = {}
    pairs = [(groups.setdefault(e.group, i), i) for i, e in enumerate(examples) if e.group is not None]
    pairs += [(members[0], i) for members in twins for i in members[1:]]
    return _joined(len(examples), pairs)


def _shared_out(examples: Sequence[Example], twins: list[list[int]], task: Task) -> dict[str, list[Example]]:
    """Random, by whole units, each label in the shares asked for as nearly as they allow."""

    def key(unit: list[int]) -> bytes:
        return blake2b(f"{task.seed}:{examples[unit[0]].row}".encode(), digest_size=8).digest()

    def label(unit: list[int]) -> str:
        if task.kind != "classification":
            return ""
        return Counter(examples[i].target for i in unit).most_common(1)[0][0]

    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    had: dict[str, list[int]] = defaultdict(lambda: [0] * len(SPLITS))
    # Large units first: the small ones then even the shares out.
    for unit in sorted(_units(examples, twins), key=lambda unit: (-len(unit), key(unit))):
        counts = had[label(unit)]
        total = sum(counts) + len(unit)
        short = [share * total - count for share, count in zip(task.shares, counts, strict=True)]
        place = max(range(len(SPLITS)), key=short.__getitem__)
        counts[place] += len(unit)
        parts[SPLITS[place]] += unit
    return {name: [examples[i] for i in sorted(members)] for name, members in parts.items()}


def _by_time(
    examples: Sequence[Example], repeated: Sequence[int], findings: list[Finding], task: Task
) -> dict[str, list[Example]]:
    """The latest go to the test. Of copies the earliest stays; of a group that spans a border, what lies behind it."""
    missing = [i for i, example in enumerate(examples) if not example.time]
    if missing:
        raise UserError(f"{task.data}:{examples[missing[0]].row}: no {task.time!r}, which the splits follow")
    left_out = set(repeated)
    kept = [i for i in range(len(examples)) if i not in left_out]
    moment = _moments([examples[i].time or "" for i in range(len(examples))])
    unit = {i: f"\0{i}" if examples[i].group is None else examples[i].group for i in kept}
    latest: dict[str, float | str] = {}
    for i in kept:
        latest[unit[i]] = max(latest.get(unit[i], moment[i]), moment[i])
    order = sorted(kept, key=lambda i: (latest[unit[i]], unit[i], moment[i], i))
    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    ends = [sum(task.shares[: k + 1]) * len(order) for k in range(len(SPLITS))]
    place = 0
    for count, i in enumerate(order):
        same = count and unit[i] == unit[order[count - 1]]
        while not same and place < len(SPLITS) - 1 and count >= ends[place]:
            place += 1
        parts[SPLITS[place]].append(i)
    learnt_until = max(moment[i] for i in parts["train"] or order[:1])
    early = [i for i in parts["test"] if moment[i] < learnt_until]
    if early:
        message = f"{len(early)} rows of groups that span the border in time were left out of the test"
        findings.append(_found("time", message, examples, early))
        parts["test"] = [i for i in parts["test"] if moment[i] >= learnt_until]
    return {name: [examples[i] for i in sorted(members)] for name, members in parts.items()}


def _moments(times: Sequence[str]) -> list[float] | list[str]:
    try:
        return [float(time) for time in times]
    except ValueError:
        return list(times)


def _given(
    examples: Sequence[Example], twins: list[list[int]], findings: list[Finding], task: Task
) -> dict[str, list[Example]]:
    """As the file says, but for what leaks from the test into training, which is left out of training."""
    place: dict[int, str] = {}
    for i, example in enumerate(examples):
        name = (example.split or "").strip().casefold()
        name = _NAMES.get(name, name)
        if name not in SPLITS:
            raise UserError(
                f"{task.data}:{example.row}: {task.split!r} is {example.split!r}; expected one of {', '.join(SPLITS)}"
            )
        place[i] = name
    tested = {i for i, name in place.items() if name == "test"}
    leaked = {i for members in twins if tested & set(members) for i in members if i not in tested}
    if leaked:
        message = f"{len(leaked)} training rows repeat a test row, exactly or nearly: a leak; they were left out"
        findings.append(_found("leak: duplicates across splits", message, examples, sorted(leaked)))
    groups = {examples[i].group for i in tested} - {None}
    crossing = [i for i, e in enumerate(examples) if i not in tested and e.group in groups and i not in leaked]
    if crossing:
        message = f"{len(crossing)} training rows belong to a group that is tested: a leak; they were left out"
        findings.append(_found("leak: groups across splits", message, examples, crossing))
    if task.time is not None:
        moment = _moments([example.time or "" for example in examples])
        begins = min((moment[i] for i in tested), default=None)
        later = [i for i in place if i not in tested and begins is not None and moment[i] > begins]
        if later:
            message = f"{len(later)} training rows are later than the first test row: what is tested is not the future"
            findings.append(_found("leak: time", message, examples, later))
    for i in [*leaked, *crossing]:
        place.pop(i)
    for name, step in (("validation", 5), ("calibration", 4)):
        if name not in place.values():  # taken from training: every fifth, then every fourth of the rest
            rows = [i for i, where in place.items() if where == "train"]
            place |= dict.fromkeys(rows[::step][: max(1, len(rows) // 5)], name)
    return {name: [examples[i] for i in sorted(place) if place[i] == name] for name in SPLITS}
