"""Checkpoints to resume from: a Hugging Face folder with the optimizers' state beside it, whole or absent.

Nothing else is needed to go on bit for bit: the batches are a function of (seed, step), the learning rate of the step,
and training draws no random numbers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inazuma.errors import RunError, UserError
from inazuma.files import PARTIAL, atomic_folder, read_json, write_json
from inazuma.model.checkpoint import load, write_model
from inazuma.train.optimizer import load_optimizer_state, optimizer_state
from inazuma.train.step import TrainStep

FOLDER = "checkpoints"
OPTIMIZER = "state/optimizer.safetensors"
TRAINER = "state/trainer.json"


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def save_checkpoint(run: Path, step: int, train_step: TrainStep, *, keep: int) -> Path:
    """Writes the checkpoint after `step` steps, then removes all but the newest `keep`.

    Raises:
        RunError: it could not be written (a full disk, say); the earlier checkpoints are untouched.
    """
    path = run / FOLDER / f"step-{step:08d}"
    if path.exists():
        _remove(path)  # of a run that was resumed from before it: it is written again, to the same bits
    try:
        with atomic_folder(path) as folder:
            write_model(train_step.model, folder)
            (folder / "state").mkdir()
            write_json(folder / TRAINER, {"step": step})
            tensors = optimizer_state(train_step.optimizers, train_step.model)
            save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, folder / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        left = checkpoints(run)
        last = f"the last good one is {left[-1]}" if left else "there is no earlier one"
        raise RunError(f"{path}: the checkpoint could not be written ({error}); {last}") from None
    for old in checkpoints(run)[:-keep]:
        _remove(old)
    return path


def _remove(path: Path) -> None:
    # Renamed first, so that no kill leaves half a checkpoint under a good name.
    doomed = path.with_name(f"{PARTIAL}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def sweep(run: Path) -> None:
    """Removes what a killed process may have left half-written in the run's folder."""
    for leftover in run.rglob(f"{PARTIAL}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def load_checkpoint(path: Path, train_step: TrainStep) -> int:
    """Puts the checkpoint's weights and optimizer state into `train_step`; returns the steps done.

    Raises:
        UserError: a damaged checkpoint, or one of another model.
    """
    saved = load(path)
    if saved.config != train_step.model.config:
        raise UserError(f"{path}: is of another model than this run's configuration describes")
    train_step.model.load_state_dict(saved.state_dict())
    try:
        state = load_file(path / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / OPTIMIZER}: damaged or missing ({error})") from None
    load_optimizer_state(train_step.optimizers, train_step.model, state)
    return int(read_json(path / TRAINER)["step"])
