"""How many planted flaws does the audit catch, and how often does it cry wolf? `python benchmarks/audit.py`.

Writes logs with one flaw each (ten variants for each of the 25 rules) and logs without any, audits each, and counts. A
planted flaw is caught when its own rule fires; where the log does not hold what the rule needs, the rule says that it
is undecided, which is counted apart. On a clean log, every finding is a false alarm. The record goes to
`benchmarks/results/audit.json` and the table in `docs/audit.md` is made of it; `--table` only makes that anew.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, the folder of this file is what Python looks in

import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from benchmarks import audit_planted_claims  # noqa: E402,F401  registers its planters
from benchmarks.audit_clean import MAKERS  # noqa: E402
from benchmarks.audit_planted import PLANTERS  # noqa: E402
from inazuma.evaluate.audit import RULES, audit  # noqa: E402
from inazuma.files import atomic_file, write_json  # noqa: E402

RESULT = ROOT / "benchmarks/results/audit.json"
TABLE = ROOT / "docs/audit.md"
SEED, PER_RULE, PER_KIND = 20261128, 10, 8
_MARKS = re.compile(r"(<!-- catch rates -->\n).*?(<!-- end of catch rates -->)", re.DOTALL)


def planted(folder: Path) -> Iterator[dict[str, Any]]:
    for rule, plant in sorted(PLANTERS.items()):
        for i in range(PER_RULE):
            here = folder / rule / str(i)
            here.mkdir(parents=True)
            plant(np.random.default_rng([SEED, int(rule[1:]), i]), here, i)
            found = audit(here)
            fired = Counter(finding.rule for finding in found.findings)
            verdict = "caught" if fired[rule] else "undecided" if found.rules[rule] == "undecided" else "missed"
            others = sorted(set(fired) - {rule})
            yield {"rule": rule, "variant": i, "format": _formats(found.read), "verdict": verdict, "also": others}


def clean(folder: Path) -> Iterator[dict[str, Any]]:
    for number, (kind, make) in enumerate(MAKERS.items()):
        for i in range(PER_KIND):
            here = folder / kind / str(i)
            here.mkdir(parents=True)
            make(np.random.default_rng([SEED, 1000 + number, i]), here, i)
            found = audit(here)
            alarms = [{"rule": f.rule, "item": f.item, "evidence": f.evidence} for f in found.findings]
            yield {"kind": kind, "variant": i, "format": _formats(found.read), "alarms": alarms}


def _formats(read: Any) -> str:
    return ", ".join(sorted({log["format"] for log in read}))


def interval(count: int, n: int) -> list[float]:
    found = stats.binomtest(count, n).proportion_ci(method="wilson")
    return [round(float(found.low), 4), round(float(found.high), 4)]


def summary(flawed: list[dict[str, Any]], sound: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates of each rule and over all, with Wilson's 95 % intervals."""
    rules = {}
    for rule in RULES:
        own = [case for case in flawed if case["rule"] == rule.NUMBER]
        verdicts = Counter(case["verdict"] for case in own)
        alarms = sum(any(alarm["rule"] == rule.NUMBER for alarm in case["alarms"]) for case in sound)
        rules[rule.NUMBER] = {
            "title": rule.TITLE,
            "planted": len(own),
            "caught": verdicts["caught"],
            "undecided": verdicts["undecided"],
            "missed": verdicts["missed"],
            "caught_interval": interval(verdicts["caught"], len(own)),
            "false_alarms": alarms,
            "false_alarms_interval": interval(alarms, len(sound)),
        }
    caught, loud = sum(case["verdict"] == "caught" for case in flawed), sum(bool(case["alarms"]) for case in sound)
    return {
        "planted": len(flawed),
        "caught": caught,
        "caught_interval": interval(caught, len(flawed)),
        "clean": len(sound),
        "with_false_alarm": loud,
        "with_false_alarm_interval": interval(loud, len(sound)),
        "rules": rules,
    }


def table(record: dict[str, Any]) -> str:
    """The record's summary as Markdown."""
    figures = record["summary"]
    lines = [
        "| rule | flaw | caught | undecided | missed | 95 % interval | false alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule, row in figures["rules"].items():
        low, high = (100 * x for x in row["caught_interval"])
        lines.append(
            f"| {rule} | {row['title']} | {row['caught']} of {row['planted']} | {row['undecided']} | {row['missed']} | "
            f"{low:.0f}–{high:.0f} % | {row['false_alarms']} of {figures['clean']} |"
        )
    low, high = (100 * x for x in figures["caught_interval"])
    bad_low, bad_high = (100 * x for x in figures["with_false_alarm_interval"])
    lines += [
        "",
        f"Caught: {figures['caught']} of {figures['planted']} planted flaws ({low:.0f}–{high:.0f} %). "
        f"Clean logs with any finding: {figures['with_false_alarm']} of {figures['clean']} "
        f"({bad_low:.1f}–{bad_high:.1f} %).",
    ]
    return "\n".join(lines) + "\n"


def with_table(text: str, record: dict[str, Any]) -> str:
    """A document with the table between its marks made anew."""
    return _MARKS.sub(lambda found: f"{found[1]}{table(record)}{found[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", action="store_true", help="make the table of docs/audit.md out of the record, no more"
    )
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="write the logs here and keep them")
    arguments = parser.parse_args()
    if not arguments.table:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.keep or Path(scratch)
            flawed, sound = list(planted(folder / "planted")), list(clean(folder / "clean"))
        record = {
            "seed": SEED,
            "packages": {name: metadata.version(name) for name in ("numpy", "scipy", "inspect-ai", "pyarrow")},
            "summary": summary(flawed, sound),
            "planted": flawed,
            "clean": sound,
        }
        write_json(RESULT, record)
    record = json.loads(RESULT.read_text())
    if TABLE.is_file():
        text = with_table(TABLE.read_text(encoding="utf-8"), record)
        with atomic_file(TABLE) as handle:
            handle.write(text)
    print(table(record), end="")


if __name__ == "__main__":
    main()
