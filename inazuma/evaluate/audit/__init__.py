"""The audit of evaluation results, this project's and others': which of the known ways to be wrong they show.

`audit(path)` reads logs (`readers/`, one file a format) into one structure (`log.py`), asks every rule (`rules/`, one
file each) and returns what was found, what was waived, and what could not be decided.
"""

from __future__ import annotations

from inazuma.evaluate.audit.audit import Audit, Finding, Open, audit, judge
from inazuma.evaluate.audit.rules import RULES

__all__ = ["RULES", "Audit", "Finding", "Open", "audit", "judge"]
