from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")

# Prints the largest resident memory in KiB. Batches and the tokenizer's sample are made small, so that a corpus of
# this size is to them what a large one is to their usual sizes.
BUILD = """
import resource, sys
from pathlib import Path
from inazuma.data import build, corpus, tokenizer
corpus.PIECE_BYTES, build.BATCH_BYTES, tokenizer.SAMPLE_BYTES = 1 << 16, 1 << 18, 1 << 20
build.build([Path(sys.argv[1])], Path(sys.argv[2]), vocab_size=1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


def resident(source: Path, out: Path) -> float:
    """Megabytes of 2^20 bytes."""
    command = [sys.executable, "-c", BUILD, source, out]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout) / 1024


@pytest.mark.slow
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
    print(small, large)
    assert large - small < 12
