"""The C++ engine without Python: `native_check.cpp`, built against its library and run (on Arm by `make arm`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inazuma.ops import cpu
from inazuma.ops.cpu import library as loading
from inazuma.ops.cpu.library import LIBRARY

COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """No engine of Python's is involved."""


@pytest.mark.skipif(cpu.MISSING is not None or COMPILER is None, reason="no C++ engine, or no compiler for its check")
@pytest.mark.skipif(sys.platform != "linux", reason="the library's place is given as Linux linkers want it")
def test_every_instruction_set_agrees_with_plain_loops(tmp_path: Path) -> None:
    source, program, library = Path(__file__).with_name("native_check.cpp"), tmp_path / "check", Path(LIBRARY._name)
    include = source.parents[2] / "native"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I", str(include), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([COMPILER, *flags, str(source), str(library), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "portable: " in done.stdout and done.stdout.endswith(" 0 failures\n")


@pytest.mark.skipif(cpu.MISSING is not None, reason="no C++ engine")
def test_a_library_of_other_sources_is_named_and_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading._load()[1] is None
    monkeypatch.setattr(loading, "INTERFACE", loading.INTERFACE + 1)
    library, why = loading._load()
    assert library is None and why.endswith("was built from other sources: install inazuma again")


def test_both_sides_say_the_same_number() -> None:
    header = Path(__file__).parents[2] / "native" / "interface.h"
    assert f"#define INAZUMA_INTERFACE {loading.INTERFACE}\n" in header.read_text()
