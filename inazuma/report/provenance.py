"""Where a run's figures came from: its commands, machine, packages and code, as a part of its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inazuma.report.page import escape

_SHOWN_PACKAGES = ("inazuma", "torch", "numpy", "tokenizers", "safetensors", "pyarrow")


def provenance(folder: Path, manifest: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    """HTML of how the run in `folder` was made, from its manifest, with `more` rows (name to value) of its own.

    Rows without a value are left out, and where the folder lies on this machine is not said.
    """
    machine, code = manifest.get("machine", {}), manifest.get("code", {})
    packages = manifest.get("packages", {})
    revision = code.get("revision")
    if revision:
        revision += {True: "", False: ", with changes that were not committed"}.get(code.get("clean"), "")
    memory = machine.get("memory")
    rows = {
        "Processor": machine.get("processor"),
        "Cores": machine.get("cores"),
        "Memory": memory and f"{memory / 2**30:.1f} GiB",
        "Accelerator": machine.get("accelerator"),
        "System": machine.get("platform"),
        "Python": machine.get("python"),
        "Packages": {name: packages[name] for name in _SHOWN_PACKAGES if name in packages},
        "Code": revision or code.get("version"),
        "Seeds": manifest.get("seeds"),
        "Started": manifest.get("started"),
        **more,
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>" for name, value in rows.items() if value)
    commands = [shlex.join(manifest["command"])] if manifest.get("command") else []
    commands.append(shlex.join(["inazuma", "verify", _shown(folder)]))
    return f"""<p>The first command makes all of this again; the second recomputes the reported figures from the run’s
raw records.</p>
<pre class="code">{escape(chr(10).join(commands))}</pre>
<dl class="made">{items}</dl>"""


def _shown(folder: Path) -> str:
    """The folder as a person would type it, without what lies above it on one machine."""
    if not folder.is_absolute():
        return str(folder)
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else folder.name


def _plain(value: Any) -> str:
    """A recorded value as one line of text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
