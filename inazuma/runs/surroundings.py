"""What a run ran on and with: the code's revision, the installed packages, the machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import inazuma
from inazuma.errors import UserError


def code() -> dict[str, Any]:
    """The package's `version` and, where it is run from a git checkout, its `revision` and whether that was `clean`."""
    package = Path(inazuma.__file__).parent
    revision = clean = None
    # An installed copy may lie inside someone else's checkout, ignored there: only a tracked file makes it ours.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:
        revision = _git(package, "rev-parse", "HEAD")
        status = _git(package, "status", "--porcelain")
        clean = None if status is None else not status
    return {"version": inazuma.__version__, "revision": revision, "clean": clean}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    # Inside a git hook these variables point at the hook's repository instead of ours.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def packages() -> dict[str, str]:
    """The installed packages: name to version."""
    return dict(_packages())


@functools.cache
def _packages() -> dict[str, str]:
    """Read once: a process that makes many runs would otherwise parse hundreds of files for each."""
    found = {item.metadata["Name"]: item.version for item in metadata.distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


def machine() -> dict[str, Any]:
    """The machine: platform, processor, usable cores, memory in bytes, Python, and the accelerator's name.

    The accelerator is asked for only where PyTorch has been imported already: it takes seconds to import.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    accelerator = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "accelerator": accelerator,
    }


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process that are in memory, or with "VmHWM" the most that were since that mark was taken down.

    Raises:
        UserError: the system is not Linux, and nobody else tells.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise UserError("memory: it is read from /proc/self/status, which this system has not") from None
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
