"""Joules that the machine counts while it answers: RAPL's counter of the processor, NVML's of an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

Joules = Mapping[str, float | None]
"""By "processor" and, where one is at work, "gpu"; None where nobody counts. What others draw meanwhile is in it."""
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def counted(gpu: bool) -> Joules:
    """Joules since some moment."""
    try:
        found: dict[str, float | None] = {"processor": int(_RAPL.read_text()) / 1e6}
    except (OSError, ValueError):  # no such counter, or only root may read it
        found = {"processor": None}
    if gpu:
        found["gpu"] = _gpu()
    return found


def since(before: Joules) -> Joules:
    """What was drawn since `before`; None of a counter that began anew."""
    after = counted("gpu" in before)
    drawn = {name: None if old is None or after[name] is None else after[name] - old for name, old in before.items()}
    return {name: None if value is None or value < 0 else value for name, value in drawn.items()}


def _gpu() -> float | None:
    """Joules that the GPU which PyTorch takes has drawn."""
    if find_spec("pynvml") is None:
        return None
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:  # an older GPU, or none of NVIDIA's
        return None
