"""Runs: whatever produces a number leaves a folder that says how, and anyone can recompute the number from it."""

from __future__ import annotations

from inazuma.runs import ladder as ladder  # formulas are known once their modules are imported
from inazuma.runs import ladder_curves as ladder_curves
from inazuma.runs import load as load
from inazuma.runs import scores as scores
from inazuma.runs.ledger import check_ledger
from inazuma.runs.run import Run
from inazuma.runs.verify import Check, produce, verify

__all__ = ["Check", "Run", "check_ledger", "produce", "verify"]
