"""Does the memory of `inazuma rightsize` grow with the file? `python benchmarks/rightsize_memory.py`

Writes files of 400 MB and of 2 GB, of many short rows and of few long ones (either is enough to fill what is kept), has
a process of its own read, split and check each as the command does before it trains anything, and records that
process's peak resident memory (VmHWM) in `benchmarks/results/rightsize_memory.json`. Exits with 1 where the larger
file takes more than the smaller by over a tenth. Texts are drawn from a hundred thousand made-up words; every row is
another text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inazuma.files import write_json
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "rightsize_memory.json"
SHAPES = {"short rows": 100, "long rows": 100_000}
"""Characters of a text."""
GROWTH = 1.1
"""The most that the peak may differ by: the same sample size holds other texts, and allocators round."""

READ = """
import json, sys, time
from pathlib import Path
from inazuma.rightsize.checks import findings, overview
from inazuma.rightsize.measure import peak_memory
from inazuma.rightsize.splits import make_splits
from inazuma.rightsize.table import read_examples
from inazuma.rightsize.task import Task
task = Task(data=Path(sys.argv[1]))
imported = peak_memory()
examples, counts = read_examples(task)
read = peak_memory(), time.process_time()
splits = make_splits(task, examples)
split = peak_memory(), time.process_time()
found = findings(task, counts, splits)
print(json.dumps({
    "rows": counts.rows, "kept": overview(task, counts, splits)["kept"],
    "characters_kept": sum(len(e.text) for e in examples), "findings": [one.message for one in found],
    "peak_mb": {"imports": imported, "read": read[0], "split": split[0], "checked": peak_memory()},
    "processor_seconds": {"read": read[1], "split": split[1], "checked": time.process_time()},
}))
"""


def texts(length: int) -> Callable[[], str]:
    """Texts of about that many characters, cut at random places out of 32 million characters of words."""
    random = np.random.Generator(np.random.PCG64(0))
    letters = random.integers(ord("a"), ord("z") + 1, size=(100_000, 7), dtype=np.uint8)
    letters[:, -1] = ord(" ")
    pool = letters[random.integers(0, len(letters), size=4_600_000)].tobytes().decode()

    def text() -> str:
        start = int(random.integers(0, len(pool) - length))
        return pool[start : start + length]

    return text


def write_csv(path: Path, size: int, length: int) -> None:
    text, written, row = texts(length), 0, 0
    with open(path, "w", encoding="utf-8") as handle:
        handle.write("text,label\n")
        while written < size:
            written += handle.write(f"{row} {text()},{'ab'[row % 2]}\n")
            row += 1


def write_parquet(path: Path, size: int, length: int) -> None:
    text, written, row = texts(length), 0, 0
    schema = pa.schema([("text", pa.string()), ("label", pa.string())])
    group = max(1, 16_000_000 // length)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while written < size:
            rows = [{"text": f"{row + i} {text()}", "label": "ab"[i % 2]} for i in range(group)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            written, row = written + group * length, row + group


FORMATS = {"csv": write_csv, "parquet": write_parquet}


def measured(path: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{path.name}: {done.stderr}")
    return {"file_bytes": path.stat().st_size, **json.loads(done.stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(400_000_000, 2_000_000_000), metavar="BYTES")
    parser.add_argument("--scratch", type=Path, help="folder with space for one file (default: the system's)")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE")
    arguments = parser.parse_args()
    cases, grown = [], False
    for (shape, length), (kind, write) in ((s, f) for s in SHAPES.items() for f in FORMATS.items()):
        if kind == "parquet" and shape == "short rows":
            continue  # a column's pages are short either way
        peaks = []
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
                path = Path(scratch) / f"a.{kind}"
                began = time.monotonic()
                write(path, size, length)
                print(f"{shape}, {kind}, {size / 1e6:.0f} MB: written in {time.monotonic() - began:.0f} s", flush=True)
                case = {"shape": shape, "format": kind, "characters": length, **measured(path)}
            print(json.dumps(case), flush=True)
            cases.append(case)
            peaks.append(case["peak_mb"]["checked"])
        grown |= peaks[1] > GROWTH * peaks[0]
    record = {
        "grown": grown,
        "allowed_growth": GROWTH,
        "cases": cases,
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": {name: version(name) for name in ("numpy", "pyarrow", "scikit-learn", "datasketch")},
    }
    write_json(arguments.out, record)
    print("grown with the file" if grown else "not grown with the file")
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
