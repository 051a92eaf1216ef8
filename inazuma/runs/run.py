"""A run: the folder that whatever produces a number writes, and what it says of how the number came about."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from inazuma.errors import UserError
from inazuma.files import PARTIAL, atomic_file, fresh_folder, read_json, sha256, write_json
from inazuma.runs.ledger import HEAD, LEDGER, append_ledger, last_line
from inazuma.runs.lines import decode_line, encode_line, read_lines, whole_lines
from inazuma.runs.surroundings import code, machine, packages

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
_NOT_ARTEFACTS = ("tensorboard", "checkpoints")


class Run:
    """A run folder: `manifest.json`, `metrics.jsonl` and whatever artefacts the work leaves beside them.

    Every start, resumption and end is also a line in the ledger of the folder that holds the run. Runs may nest: a run
    inside another run's folder has its ledger there.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._since = time.monotonic()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        command: Sequence[str],
        config: Mapping[str, Any],
        seeds: Mapping[str, int] | None = None,
        inputs: Mapping[str, str] | None = None,
        force: bool = False,
    ) -> Run:
        """Makes the folder and its manifest; `inputs` maps what the run reads to its SHA-256.

        Raises `UserError` when the folder is not empty, unless `force` empties it.
        """
        path = Path(path)
        fresh_folder(path, force=force).mkdir(parents=True, exist_ok=True)
        manifest = {
            "id": uuid.uuid4().hex,
            "command": list(command),
            "config": dict(config),
            "code": code(),
            "packages": packages(),
            "machine": machine(),
            "seeds": dict(seeds or {}),
            "inputs": dict(inputs or {}),
            "status": "running",
            "started": _now(),
            "resumed": [],
            "seconds": 0.0,
        }
        run = cls(path, manifest)
        # What says after the folder is gone that it was the same work, and with which seeds.
        run._write("started", command=list(command), recipe=recipe(manifest), seeds=manifest["seeds"])
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run at `path`; changes nothing there. A `UserError` when it is no run folder."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise UserError(f"{path}: not a run folder (it has no {MANIFEST})")
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or not {"id", "status", "command", "config"} <= manifest.keys():
            raise UserError(f"{path / MANIFEST}: not a run's manifest")
        if not isinstance(manifest.get("artefacts", {}), dict):
            raise UserError(f"{path / MANIFEST}: 'artefacts' is not a mapping of files to hashes")
        return cls(path, manifest)

    def metric(self, **values: Any) -> None:
        """Appends one line to `metrics.jsonl`, handed to the system before this returns, so that a kill loses none.

        Floats that are not finite are kept as the text "nan", "inf" or "-inf".
        """
        with open(self.path / METRICS, "ab") as handle:
            handle.write(encode_line(values))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of `metrics.jsonl`; none where there is no such file.

        A torn last line is ignored; a damaged one before it is a `UserError` with its number.
        """
        if (self.path / METRICS).exists():
            yield from read_lines(self.path / METRICS)

    def truncate_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drops, in one step, the lines that `keep` refuses, which a resumed run will write again, and a torn last."""
        path = self.path / METRICS
        if path.exists():
            lines = enumerate(whole_lines(path), start=1)
            kept = [line for number, line in lines if keep(decode_line(line, f"{path}:{number}"))]
            with atomic_file(path, "wb") as handle:
                handle.writelines(kept)

    def resumed(self, **facts: Any) -> None:
        """Notes that the run goes on, with `facts` such as the step it goes on from."""
        # A line torn by a kill would otherwise swallow the next one.
        self.truncate_metrics(lambda record: True)
        for stale in ("ended", "error", "artefacts"):
            self.manifest.pop(stale, None)
        self.manifest["status"] = "running"
        self.manifest["resumed"].append({"time": _now(), **facts})
        self._since = time.monotonic()
        self._write("resumed", **facts)

    def finish(self, status: Literal["finished", "failed", "interrupted"], *, error: str | None = None) -> None:
        """Ends the run: its status, its seconds and the SHA-256 of every artefact go to the manifest.

        Artefacts are all files below the folder except the manifest, ledgers, and what lies in `tensorboard` and
        `checkpoints` folders. `seconds` adds up every part of the run that ended in order; a killed part is not known.
        """
        self.manifest |= {
            "status": status,
            "ended": _now(),
            "seconds": round(self.manifest["seconds"] + time.monotonic() - self._since, 3),
            "artefacts": {name: sha256(self.path / name) for name in self._artefacts()},
        }
        if error is not None:
            self.manifest["error"] = error
        # A second call would count the time twice.
        self._since = time.monotonic()
        self._write(status, **({"error": error} if error else {}))

    def _artefacts(self) -> list[str]:
        names = []
        for file in sorted(self.path.rglob("*")):
            inside = file.relative_to(self.path)
            mutable = inside.as_posix() == MANIFEST or file.name in (LEDGER, HEAD) or PARTIAL in inside.as_posix()
            if file.is_file() and not mutable and not set(inside.parts[:-1]) & set(_NOT_ARTEFACTS):
                names.append(inside.as_posix())
        return names

    def _write(self, event: str, **facts: Any) -> None:
        """Writes the manifest and its hash into the ledger, which thereby vouches for all the manifest hashes."""
        where = self.path.resolve()
        self.manifest["follows"] = last_line(where.parent)
        write_json(self.path / MANIFEST, self.manifest)
        facts["manifest"] = sha256(self.path / MANIFEST)
        append_ledger(where.parent, run=where.name, identity=self.manifest["id"], event=event, **facts)


def recipe(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a run does but for its seeds: equal for runs among which somebody could pick the best."""
    seeds = manifest.get("seeds", {})
    same = {
        "verb": manifest["command"][:2],
        "config": {key: value for key, value in manifest["config"].items() if key not in seeds},
        "inputs": manifest.get("inputs", {}),
        "seeds": sorted(seeds),
    }
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
