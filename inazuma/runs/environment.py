"""The environment of a run, built again: its recorded packages and the recorded revision of the code."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import inazuma
from inazuma.errors import RunError, UserError
from inazuma.runs.run import MANIFEST, Run

_OURS = ("inazuma", "pip")


def requirements(run: Run) -> list[str]:
    """What to install, `name==version`. Raises `UserError` where the manifest does not say it or which code ran."""
    where, code = run.path / MANIFEST, run.manifest.get("code", {})
    packages = run.manifest.get("packages", {})
    if not packages:
        raise UserError(f"{where}: 'packages' is missing, so the environment cannot be built again")
    if not code.get("revision"):
        raise UserError(f"{where}: 'code.revision' is missing, so nobody knows which code it ran")
    if code.get("clean") is not True:
        raise UserError(f"{where}: 'code.clean' is not true: it ran code that is in no revision")
    return [f"{name}=={version}" for name, version in packages.items() if name.lower() not in _OURS]


def build_environment(run: Run, folder: Path) -> Path:
    """Builds a virtual environment in `folder` and returns its interpreter; pip asks the index it is configured for.

    Raises:
        UserError: see `requirements`. RunError: a package or the revision cannot be had.
    """
    wanted = requirements(run)
    python = folder / "environment" / "bin" / "python"
    _do([sys.executable, "-m", "venv", str(folder / "environment")], "making a virtual environment")
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    # What was recorded is the whole environment: nothing is to be resolved or added.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _do([*pip, "-r", str(folder / "requirements.txt")], "installing the recorded packages")
    revision, checkout = run.manifest["code"]["revision"], Path(inazuma.__file__).parent.parent
    _do(
        ["git", "-C", str(checkout), "archive", "--output", str(folder / "code.tar"), revision],
        f"taking revision {revision} out of {checkout}",
    )
    with tarfile.open(folder / "code.tar") as archive:
        archive.extractall(folder / "code", filter="data")
    _do([*pip, str(folder / "code")], "installing that revision")
    return python


def _do(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        # pip's warnings may follow its error.
        errors = [line for line in said if line.startswith("ERROR")]
        raise RunError(f"{what} failed: {(errors or said)[-1]}")
