"""The demo's text: the sources of two packages that PyTorch itself installs.

NetworkX and mpmath lie on every machine that has PyTorch, need no further download, come from the package
registry at the versions that constraints.txt pins, and are under the BSD licence. They are 8 MB of real text: code,
and much English in its docstrings. What exactly was read is in the data's manifest, with hashes.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from inazuma.errors import UserError

PACKAGES = ("networkx", "mpmath")
LARGEST = 100_000
"""Bytes; larger files are mostly generated tables."""


def package_sources() -> tuple[list[Path], dict[str, str]]:
    """The corpus's files, sorted, and each package's version.

    Raises:
        UserError: a package is not installed.
    """
    files: list[Path] = []
    versions = {}
    for name in PACKAGES:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"the built-in corpus needs the package {name}; pip install it, or pass --data PATH"
            ) from None
        versions[name] = distribution.version
        sources = (Path(distribution.locate_file(file)) for file in distribution.files or () if file.suffix == ".py")
        files += [file for file in sources if file.is_file() and 0 < file.stat().st_size <= LARGEST]
    return sorted(files), versions
