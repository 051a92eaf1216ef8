"""`inazuma audit PATH`: what is wrong with evaluation results, whoever wrote them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inazuma.evaluate.audit import Audit

SUMMARY = "check evaluation results of inazuma, lm-eval, Inspect, lighteval or HELM against rules V01 to V25"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a log, or a folder of logs with study.yaml beside them"
    )
    parser.add_argument("--waivers", metavar="FILE", type=Path, help="instead of the waivers.yaml beside the logs")
    parser.add_argument("--json", action="store_true", help="print findings, waivers and what was read as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the audit; 0 without a finding, 1 with findings, and 2 (a `UserError`) where something is unreadable."""
    from inazuma.evaluate.audit import audit

    result = audit(arguments.path, arguments.waivers)
    if arguments.json:
        import json

        print(json.dumps(result.record(), indent=2, ensure_ascii=False))
    else:
        _print(result)
    return 1 if result.findings else 0


def _print(result: Audit) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for log in result.read:
        tasks = ", ".join(f"{name} ({n})" for name, n in log.get("tasks", {}).items())
        console.print(
            Text(f"read {log['path']}: {log['format']} {log.get('version') or ''} {tasks}".rstrip(), style="dim")
        )
    for finding in result.findings:
        console.print(Text(f"\n{finding.rule} {finding.title}", style="bold red"))
        console.print(Text(f"  {finding.item}: {finding.evidence}\n  fix: {finding.fix}\n  case: {finding.source}"))
    for finding in result.waived:
        console.print(Text(f"\n{finding.rule} {finding.title} (waived: {finding.waived})", style="bold yellow"))
        console.print(Text(f"  {finding.item}: {finding.evidence}"))
    for waiver in result.waivers:
        if not waiver["used"]:
            console.print(Text(f"waiver of {waiver['rule']} covers nothing: {waiver['reason']}", style="yellow"))
    if result.undecided:
        console.print(Text("\nnot decided from what is here:", style="bold"))
    for one in result.undecided:
        console.print(Text(f"  {one.rule} {one.item}: {one.reason}"))
    for status in ("clean", "nothing to judge"):
        rules = [rule for rule, found in result.rules.items() if found == status]
        if rules:
            console.print(Text(f"{status}: {' '.join(rules)}"))
    fired = sum(status == "findings" for status in result.rules.values())
    style = "bold red" if fired else "bold green"
    count = len(result.findings)
    console.print(Text(f"{count} finding{'s' * (count != 1)} of {fired} rule{'s' * (fired != 1)}", style=style))
