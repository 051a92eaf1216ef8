"""Energy is counted where a counter exists, and says where it is only estimated."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from inazuma.rightsize import energy
from inazuma.rightsize.climb import facts
from inazuma.rightsize.predictor import Answer
from inazuma.rightsize.task import Costs, Task

TASK = Task(data="a.csv", costs=Costs(watts=30.0, gpu_watts=200.0))
SPLITS = {"train": [0] * 60, "validation": [0] * 10, "calibration": [0] * 10}


class NVMLError(Exception):
    pass


def nvml(total):
    """A stand-in for NVIDIA's library: its counter is in millijoules, of the GPU of PyTorch's identity."""

    def handle(name):
        assert name == "GPU-5f3c"
        return "handle"

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: total(),
    )


@pytest.fixture
def gpu(monkeypatch):
    readings = iter([1_000_000, 1_002_500, 400])
    monkeypatch.setitem(sys.modules, "pynvml", nvml(lambda: next(readings)))
    monkeypatch.setattr(energy, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="5f3c"))


def test_joules_are_the_counters_differences(gpu, tmp_path, monkeypatch):
    counter = tmp_path / "energy_uj"
    monkeypatch.setattr(energy, "_RAPL", counter)
    counter.write_text("7000000\n")
    before = energy.counted(gpu=True)
    assert before == {"processor": 7.0, "gpu": 1000.0}
    counter.write_text("7500000\n")
    assert energy.since(before) == {"processor": 0.5, "gpu": 2.5}
    # RAPL's counter begins anew every few hours, and NVML's when the driver is loaded.
    counter.write_text("12\n")
    assert energy.since(before) == {"processor": None, "gpu": None}


def test_nobody_counts(tmp_path, monkeypatch):
    def missing():
        raise NVMLError

    monkeypatch.setattr(energy, "_RAPL", tmp_path / "none")
    assert energy.counted(gpu=False) == {"processor": None}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(missing))
    monkeypatch.setattr(energy, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="5f3c"))
    before = energy.counted(gpu=True)
    assert before == {"processor": None, "gpu": None} == energy.since(before)


@pytest.mark.parametrize(
    ("gpu", "joules", "expected", "said"),
    [
        (False, {"processor": None}, 0.004 * 30, "estimated"),
        (False, {"processor": 0.3}, 0.3, "counted"),
        (True, {"processor": None, "gpu": 1.5}, 0.004 * 30 + 1.5, "estimated in part"),
        (True, {"processor": 0.3, "gpu": 1.5}, 1.8, "counted"),
        # Two milliseconds an answer, at 200 watts.
        (True, {"processor": None, "gpu": None}, 0.004 * 30 + 0.002 * 200, "estimated"),
        (True, {}, 0.004 * 30 + 0.002 * 200, "estimated"),
    ],
)
def test_what_is_not_counted_is_estimated_and_says_so(tmp_path, gpu, joules, expected, said):
    name = "H100" if gpu else ""
    measured = {"service_ms": [1.0, 3.0], "cpu_seconds": 0.004, "joules": joules, "gpu": name, "gpu_memory_mb": 7.0}
    kept = facts(TASK, SPLITS, tmp_path, [], [Answer("a", 1.0)], measured)
    assert kept["joules"] == pytest.approx(expected) and kept["energy"] == said
    assert kept["gpu"] == name and kept["gpu_memory_mb"] == 7.0
