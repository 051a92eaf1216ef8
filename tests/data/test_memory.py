from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# Prints the largest resident memory in KiB: not `ru_maxrss`, which begins at that of the process that forked.
# Batches and the tokenizer's sample are made small, so that a small corpus is to them what a large one is otherwise.
BUILD = """
import re, sys
from pathlib import Path
from inazuma.data import build, corpus, tokenizer
corpus.PIECE_BYTES, build.BATCH_BYTES, tokenizer.SAMPLE_BYTES = 1 << 16, 1 << 18, 1 << 20
build.build([Path(sys.argv[1])], Path(sys.argv[2]), vocab_size=1000)
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def resident(source: Path, out: Path) -> float:
    """Megabytes of 2^20 bytes."""
    command = [sys.executable, "-c", BUILD, source, out]
    # One thread: how many pieces are in work at a moment, and so the memory, would otherwise be a matter of luck.
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """40 MB need what 10 MB need; held at once, the rest of the text would be 30 MB and its tokens more."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(5000)]
    lines = [" ".join([str(number), *chance.choices(words, k=150)]) + "\n" for number in range(40_000)]
    sources = [tmp_path / "small.txt", tmp_path / "large.txt"]
    for source, count in zip(sources, (10_000, 40_000), strict=True):
        source.write_text("".join(lines[:count]))
    assert sources[1].stat().st_size - sources[0].stat().st_size > 28_000_000
    small, large = (resident(source, source.with_suffix("")) for source in sources)
    assert large - small < 15
