"""How long one answer takes and how much memory the answering process needs: in a fresh process of its own.

python -m inazuma.rightsize.measure MODEL TEXTS.json OUT.json BEGAN
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inazuma.errors import RunError
from inazuma.files import read_json, write_json
from inazuma.rightsize.energy import counted, since

CALLS, SECONDS, WARM = 1000, 5.0, 5


def measure(model: Path, texts: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Milliseconds of single answers, seconds to the first one from a cold start, memory (MB), the GPU's too where it
    answers on one, and energy.

    Raises:
        RunError: the process ended without an answer.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    write_json(scratch / "texts.json", list(texts))
    command = [sys.executable, "-m", "inazuma.rightsize.measure", str(model), str(scratch / "texts.json")]
    began = time.time()
    done = subprocess.run([*command, str(scratch / "out.json"), str(began)], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"measuring {model} failed: {' '.join(done.stderr.split())[-300:]}")
    return read_json(scratch / "out.json")


def peak_memory(process: str = "self") -> float:
    """The peak resident memory of a process in MB; `ru_maxrss` would hold what the parent had before it."""
    # Written again here although `runs.surroundings` has it: importing that would double what the smallest rungs need.
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000 * 1.024
    return 0.0


def main(model: str, texts: str, out: str, began: str) -> None:
    from inazuma.rightsize.predictor import load

    rows: list[str] = json.loads(Path(texts).read_text())
    predictor = load(model)
    predictor.answer(rows[:1])
    cold = time.time() - float(began)
    for text in rows[:WARM]:
        predictor.answer([text])
    service: list[float] = []
    gpu = str(getattr(predictor, "device", "cpu")).startswith("cuda")
    until, cpu, before = time.perf_counter() + SECONDS, time.process_time(), counted(gpu)
    while len(service) < CALLS and (time.perf_counter() < until or len(service) < 20):
        start = time.perf_counter()
        predictor.answer([rows[len(service) % len(rows)]])
        service.append(1000 * (time.perf_counter() - start))
    joules = {name: None if x is None else x / len(service) for name, x in since(before).items()}
    name, held = "", 0.0
    if gpu:
        import torch

        name, held = torch.cuda.get_device_name(), torch.cuda.max_memory_reserved() / 1e6
    write_json(
        Path(out),
        {
            "service_ms": service,
            "cold_start_s": cold,
            "memory_mb": peak_memory(),
            "cpu_seconds": (time.process_time() - cpu) / len(service),
            "joules": joules,
            "gpu": name,
            "gpu_memory_mb": held,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
