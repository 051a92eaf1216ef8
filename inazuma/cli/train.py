"""`inazuma train CONFIG.yaml`, and `inazuma train --resume RUN`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inazuma.errors import UserError

SUMMARY = "train a model by a recipe, or resume a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.yaml", help="the recipe; see examples/train.yaml"
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="folder of the new run, which must not exist (default: runs/CONFIG)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with this run from its newest checkpoint, bit for bit"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        dest="overrides",
        help="change a field of the recipe, e.g. --set stages.0.tokens=1e6 (may be repeated)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing run folder")


def run(arguments: argparse.Namespace) -> int:
    from inazuma import config
    from inazuma.train.progress import TrainingDisplay
    from inazuma.train.recipe import TrainConfig
    from inazuma.train.trainer import Interrupted, Trainer

    if arguments.config is None and arguments.resume is None:
        raise UserError("train: pass CONFIG.yaml to begin a run, or --resume RUN to go on with one")
    if arguments.resume is not None and arguments.out is not None:
        raise UserError("train: --resume RUN goes on in RUN; leave --out away")
    if arguments.config is None and arguments.overrides:
        raise UserError("train: --set changes the fields of CONFIG.yaml; name it too")
    recipe = None
    if arguments.config is not None:
        recipe = config.load(TrainConfig, arguments.config, arguments.overrides)
    if arguments.resume is not None:
        trainer = Trainer.resume(arguments.resume, config=recipe)
    else:
        out = arguments.out or Path("runs") / arguments.config.stem
        trainer = Trainer.start(recipe, out, command=["inazuma", *sys.argv[1:]], force=arguments.force)
    path = trainer.run.path
    try:
        with TrainingDisplay(path.name, trainer.total_steps, trainer.step) as display:
            trainer.train(display.watch)
    except Interrupted as interruption:
        print(f"{interruption}; go on with: inazuma train --resume {path}", file=sys.stderr)
        return 130
    print(f"model: {path / 'model'}")
    return 0
