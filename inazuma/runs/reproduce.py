"""A run again, from its manifest: the same command, configuration, seeds and inputs in a fresh process.

What comes out is one of three things, which are not the same. *Bit-identical*: every file that was compared has the
same bytes, apart from what a clock or a memory meter says. *Within tolerance*: files differ, and every figure is within
the tolerance of the recorded one. *Different*: a figure is further off, or is missing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

import inazuma
from inazuma.errors import RunError, UserError
from inazuma.files import read_json, sha256
from inazuma.runs.lines import read_lines
from inazuma.runs.run import MANIFEST, METRICS, Run
from inazuma.runs.verify import RESULT, check_manifest

Outcome = Literal["bit-identical", "within tolerance", "different"]
Compared = Literal["identical", "identical but for the clock", "different", "missing", "not compared"]

_CLOCK = re.compile(r"(^|_)(seconds|latency|time|started|ended|peak)($|_)|per_second")
"""Fields of records that a clock or a memory meter fills: no two runs agree in them."""


@dataclass(frozen=True)
class Off:
    """A figure that is not the recorded one."""

    figure: str
    recorded: Any
    found: Any


@dataclass(frozen=True)
class Reproduction:
    """What running again gave."""

    outcome: Outcome
    tolerance: float
    files: dict[str, Compared]
    figures: int
    """How many figures were compared, in `result.json` or else in `metrics.jsonl`."""
    off: tuple[Off, ...]
    """The figures that are off by more than the tolerance."""
    largest: float
    """The largest relative difference of a figure."""
    not_the_same: tuple[str, ...]
    """What of the surroundings was not the same: code, packages, machine."""


def reproduce(run_path: Path, out: Path, *, tolerance: float, python: Path | None = None) -> Reproduction:
    """Runs the run at `run_path` again into the folder `out`, which must not exist, and compares.

    `tolerance` is relative. Relative paths in the command and the configuration are read from the current folder.
    `python` is the interpreter of another environment that has inazuma.

    Raises:
        UserError: the manifest lacks what is needed, a recorded file was edited, or inputs or configuration are not the
            recorded ones any more. RunError: it could not be carried out.
    """
    run = Run.open(run_path)
    _check_recorded(run)
    out = Path(out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = arguments_again(run, out, out.parent / f"{out.name}.yaml")
    _carry_out(run, arguments, out, python)
    return compare(run, Run.open(out), tolerance=tolerance)


def _check_recorded(run: Run) -> None:
    where = run.path / MANIFEST
    if run.manifest["status"] != "finished":
        raise UserError(f"{where}: the run did not finish ({run.manifest['status']}); there is no result to reproduce")
    if not run.manifest.get("artefacts"):
        raise UserError(f"{where}: names no artefacts, so there is nothing to compare with")
    for check in check_manifest(run):
        if not check.ok:
            raise UserError(f"{where}: {check.problem}")
    for name, recorded in run.manifest["artefacts"].items():
        # What was not kept is compared by its hash alone.
        if (run.path / name).is_file() and (found := sha256(run.path / name)) != recorded:
            raise UserError(f"{run.path / name}: edited: its SHA-256 is {found}, recorded is {recorded}")


def arguments_again(run: Run, out: Path, recipe: Path) -> list[str]:
    """The words after `inazuma` that do the run's work again into `out`.

    A training is repeated from the configuration in its manifest, which is written to the file `recipe`: the file that
    its command names may have changed. Other verbs are repeated by their command.
    """
    where, command = run.path / MANIFEST, run.manifest["command"]
    if len(command) < 2 or Path(command[0]).name != "inazuma":
        raise UserError(f"{where}: 'command' is {shlex.join(command)!r}, no verb of inazuma that could be run again")
    if command[1] == "train":
        recipe.write_text(yaml.safe_dump(run.manifest["config"], sort_keys=False), encoding="utf-8")
        return ["train", str(recipe), "--out", str(out)]
    words = []
    rest = iter(command[1:])
    for word in rest:
        if word == "--out":
            next(rest, None)
        elif word != "--force" and not word.startswith("--out="):
            words.append(word)
    return [*words, "--out", str(out)]


def _carry_out(run: Run, arguments: list[str], out: Path, python: Path | None) -> None:
    """Runs it in a fresh process, and stops it as soon as it turns out to be other work than was recorded."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python is None:
        environment["PYTHONPATH"] = str(Path(inazuma.__file__).parent.parent)
    # -P: files in the current folder are not taken for modules.
    command = [str(python or sys.executable), "-P", "-m", "inazuma", *arguments]
    log = out.parent / f"{out.name}.log"
    with open(log, "wb") as handle:
        process = subprocess.Popen(command, env=environment, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None and not (out / MANIFEST).is_file():
                time.sleep(0.05)
            if (out / MANIFEST).is_file():
                _check_same_work(run.manifest, Run.open(out).manifest, run.path / MANIFEST)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise RunError(f"inazuma {shlex.join(arguments)} ended with exit code {code}: {said[-1]}")


def _check_same_work(recorded: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    for part in ("inputs", "seeds", "config"):
        for name, before, after in _differences(recorded.get(part, {}), now.get(part, {}), part, clock=True):
            raise UserError(f"{where}: {name} was {before!r} and would be {after!r} now: it would be another run")


def compare(recorded: Run, again: Run, *, tolerance: float) -> Reproduction:
    """Compares two runs of the same work, file by file and figure by figure."""
    if again.manifest["status"] != "finished":
        raise RunError(f"{again.path}: the repeated run did not finish ({again.manifest['status']})")
    files = {name: _compare_file(recorded, again, name) for name in recorded.manifest["artefacts"]}
    if set(files.values()) == {"not compared"}:
        raise RunError(f"{recorded.path}: nothing of it can be compared")
    figures, off, largest = _compare_figures(recorded.path, again.path, tolerance)
    if set(files.values()) <= {"identical", "identical but for the clock", "not compared"}:
        outcome: Outcome = "bit-identical"
    else:
        outcome = "within tolerance" if figures and not off and "missing" not in files.values() else "different"
    same = tuple(_surroundings(recorded.manifest, again.manifest))
    return Reproduction(outcome, tolerance, files, figures, tuple(off), largest, same)


def _compare_file(recorded: Run, again: Run, name: str) -> Compared:
    found = again.manifest["artefacts"].get(name)
    # Manifests of inner runs hold times and identities; a report repeats what the records say, times included.
    if Path(name).name == MANIFEST or name.endswith(".html"):
        return "not compared" if found else "missing"
    if found is None:
        return "missing"
    if found == recorded.manifest["artefacts"][name]:
        return "identical"
    kind = Path(name).suffix
    if kind not in (".json", ".jsonl"):
        return "different"
    if not (recorded.path / name).is_file():
        return "not compared"
    values = [_read(path / name) for path in (recorded.path, again.path)]
    return "different" if any(_differences(*values, name)) else "identical but for the clock"


def _compare_figures(recorded: Path, again: Path, tolerance: float) -> tuple[int, list[Off], float]:
    name = next((name for name in (RESULT, METRICS) if (recorded / name).is_file()), None)
    if name is None or not (again / name).is_file():
        return 0, [], 0.0
    values = [_read(path / name) for path in (recorded, again)]
    off, largest = [], 0.0
    for figure, before, after in _differences(*values, ""):
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (before, after))
        relative = abs(before - after) / max(abs(before), abs(after)) if numbers else float("inf")
        if numbers:
            largest = max(largest, relative)
        if relative > tolerance:
            off.append(Off(figure, before, after))
    return _count(values[0]), off, largest


def _read(path: Path) -> Any:
    return list(read_lines(path)) if path.suffix == ".jsonl" else read_json(path)


def _differences(a: Any, b: Any, where: str, *, clock: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, one value, the other) of every leaf that is not the same in both; the clock's only with `clock`."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if clock or not _CLOCK.search(str(key)):
                yield from _differences(a.get(key), b.get(key), f"{where}.{key}" if where else str(key), clock=clock)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{where}.{place}" if where else str(place), clock=clock)
    elif a != b:
        yield where, a, b


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_count(item) for key, item in value.items() if not _CLOCK.search(str(key)))
    if isinstance(value, list):
        return sum(map(_count, value))
    return int(isinstance(value, int | float))


def _surroundings(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[str]:
    for part in ("code", "machine", "packages"):
        for name, before, after in _differences(recorded.get(part, {}), again.get(part, {}), part, clock=True):
            yield f"{name}: {before} then, {after} now"
    if again.get("code", {}).get("clean") is False:
        yield "code: has changes now that are in no revision"
