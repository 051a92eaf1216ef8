"""How much memory `inazuma data build` needs for 2 GB of text: `python benchmarks/data_memory.py`.

Writes a corpus of that size (half of it one plain-text file, half JSON lines) into a temporary folder, builds it in a
process of its own, and records that process's largest resident memory in `benchmarks/results/data_memory.json`. The
text is made up: words of Zipf's frequencies, in Latin letters and in Japanese.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from inazuma.files import write_json
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "data_memory.json"
LIMIT = 1_500_000_000
WORDS = 100_000


def paragraphs(seed: int) -> Iterator[str]:
    """Endless paragraphs of about 1,500 bytes."""
    chance = random.Random(seed)
    latin, japanese = "etaoinshrdlucmfwypvbgkjqxz", "のにをはがとたしてでれるいあ稲妻光雨風山川田中大学語文"
    words = [
        "".join(chance.choices(alphabet, k=chance.randint(1, longest)))
        for alphabet, longest in [(latin, 11)] * 9 + [(japanese, 3)]
        for _ in range(WORDS // 10)
    ]
    chance.shuffle(words)
    total, cumulative = 0.0, []
    for rank in range(len(words)):
        total += 1 / (rank + 1)
        cumulative.append(total)
    while True:
        yield " ".join(chance.choices(words, cum_weights=cumulative, k=250)) + ".\n"


def write_corpus(folder: Path, size: int) -> None:
    texts = paragraphs(0)
    for name in ("book.txt", "pages.jsonl"):
        written = 0
        with open(folder / name, "w", encoding="utf-8") as handle:
            while written < size // 2:
                text = next(texts)
                written += len(text.encode())
                handle.write(json.dumps({"text": text}) + "\n" if name.endswith(".jsonl") else text)


def build(folder: Path) -> tuple[dict, int, float]:
    """The manifest, the process's largest resident memory in bytes, and its seconds."""
    command = [sys.executable, "-m", "inazuma", "data", "build", str(folder / "corpus"), "--out", str(folder / "out")]
    started = time.monotonic()
    with open(folder / "manifest.json", "w") as output:
        child = subprocess.Popen([*command, "--json"], stdout=output)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, usage.ru_maxrss * unit, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the memory of `inazuma data build`.")
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="size of the text (default: 2 GB)")
    parser.add_argument("--scratch", type=Path, help="folder with space for twice that (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        write_corpus(corpus, arguments.bytes)
        manifest, resident, seconds = build(Path(scratch))
    splits = manifest["splits"].values()
    record = {
        "text_bytes": sum(split["bytes"] for split in splits),
        "documents": sum(split["documents"] for split in splits),
        "tokens": sum(split["tokens"] for split in splits),
        "max_resident_bytes": resident,
        "limit_bytes": LIMIT,
        "seconds": round(seconds, 1),
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": {name: version(name) for name in ("tokenizers", "numpy", "pyarrow")},
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, record)
    print(json.dumps(record, indent=2))
    return int(resident > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
