"""Every kernel the Triton engine launches compiles for every GPU it is meant for, without that GPU: it fits the shared
memory, keeps its sums in registers and multiplies on tensor cores. `make test` compiles for one GPU, `make test-all`
for all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

SHARED_MEMORY = {
    "gfx942": 65_536,
    "sm_86": 101_376,
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
}
"""Bytes that a block may have (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the local
data share of CDNA 3)."""
SPILLED = 64
"""Bytes a thread may spill: a few registers that are set aside once, outside a loop."""
SPILLED_FASTER = {("sm_90", "attention_backward_queries"): 320}
"""Where the tile that spills was the fastest on the GPU itself: 64 rows of absorbed attention, 1.7 times 32 rows."""
OF_PACKS = {"list_holders", "mark_holders"}
WITHOUT_PRODUCTS = {
    "count_readers",
    "add_shares",
    "keep_best",
    "loss_of_rows",
    "mark_readers",
    "query_ranges",
    "rotate_heads",
    "sum_pairs",
} | OF_PACKS
KERNELS = WITHOUT_PRODUCTS | {
    "attention_backward_keys",
    "attention_backward_queries",
    "attention_forward",
    "index_backward_keys",
    "index_backward_queries",
    "index_scores",
    "kept_scores_and_target",
    "paged_attention",
    "visible_target",
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These tests name their engine themselves."""


def compiled_for(target: str, *widths: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.ops.triton_compile", target, *widths]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def test_absorbed_attention_fits_the_gpus_of_least_shared_memory_that_many_have() -> None:
    assert_fits("sm_86", "absorbed")


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_every_kernel_fits_the_gpu(target: str) -> None:
    assert_fits(target)


def assert_fits(target: str, *widths: str) -> None:
    """All widths, or those named."""
    records = compiled_for(target, *widths)
    assert {record["kernel"] for record in records} == (KERNELS - OF_PACKS if widths == ("absorbed",) else KERNELS)
    problems = []
    for record in records:
        # NVIDIA's tensor cores have no float32 products.
        tensor_cores = record["kernel"] not in WITHOUT_PRODUCTS and "float32" not in record["widths"]
        if record["shared"] > SHARED_MEMORY[target]:
            problems.append(f"too much shared memory: {record}")
        if record["spilled"] > SPILLED_FASTER.get((target, record["kernel"]), SPILLED):
            problems.append(f"spills: {record}")
        if tensor_cores and record["products"] == 0:
            problems.append(f"no tensor cores: {record}")
    assert not problems, "\n".join(problems)
