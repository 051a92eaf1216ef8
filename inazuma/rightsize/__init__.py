"""Which size of model does a task need? A ladder from the trivial baseline to a large model, and a verdict."""

from __future__ import annotations

from inazuma.rightsize.predictor import Answer, load

__all__ = ["Answer", "load"]
