"""`python -m inazuma.evaluate.lm_eval …`: the command line of lm-evaluation-harness, which then knows our models.

The harness finds models in a table of its own and has no place where others could add to it, so `lm_eval --model
inazuma` by itself does not exist. Behind this module it does:

    python -m inazuma.evaluate.lm_eval run --model inazuma --model_args pretrained=runs/demo/model --tasks arc_easy
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from inazuma.evaluate.harness_model import HarnessModel
from inazuma.evaluate.local import LocalModel


@register_model("inazuma")
class Inazuma(HarnessModel):
    """A checkpoint, named by `pretrained`. Prompts are computed one at a time whatever the batch size."""

    def __init__(self, pretrained: str, **_: Any) -> None:
        super().__init__(LocalModel(Path(pretrained)))


if __name__ == "__main__":
    cli_evaluate()
