"""What a run leaves for `inazuma audit`, and what the audit says of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from inazuma.evaluate.audit import audit
from inazuma.evaluate.audit.declared import DECLARATION
from inazuma.evaluate.audit.waivers import WAIVERS
from inazuma.files import atomic_file, write_json
from inazuma.rightsize.splits import SPLITS, Splits
from inazuma.runs.lines import encode_line

AUDIT = "audit.json"


def write_study(splits: Splits, out: Path) -> None:
    """The texts of all splits, and the `study.yaml` that names them: with them a leak can be found by others. What
    something was chosen by counts as training. `waivers.yaml` says of what is as it should be why it is."""
    (out / "splits").mkdir(exist_ok=True)
    for name in SPLITS:
        with atomic_file(out / "splits" / f"{name}.jsonl", "wb") as handle:
            for example in splits[name]:
                group = {} if example.group is None else {"group": example.group}
                handle.write(encode_line({"text": example.text, **group}))
    *learnt, tested = (f"splits/{name}.jsonl" for name in SPLITS)
    texts = {"train_split": learnt, "test_split": [tested]}
    floor = "the floor that the other rungs are held against: at chance because it is meant to be"
    with atomic_file(out / WAIVERS) as handle:
        handle.write(yaml.safe_dump([{"rule": "V24", "task": "majority: test", "reason": floor}], sort_keys=False))
    with atomic_file(out / DECLARATION) as handle:
        handle.write(yaml.safe_dump({"texts": {**texts, "fitted_on": ["train"]}}, sort_keys=False))


def write_audit(out: Path) -> dict[str, Any]:
    """Audits the rungs' answers and figures; returns what `audit.json` then holds: status by rule, and findings."""
    result = audit(out)
    record = {"rules": result.rules, "findings": [asdict(finding) for finding in result.findings]}
    write_json(out / AUDIT, record)
    return record
