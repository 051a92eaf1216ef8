"""The rules V01 to V25, one file each: number, title, the published case it comes from, the check, the fix."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

RULES: tuple[ModuleType, ...] = tuple(
    importlib.import_module(f"{__name__}.{module.name}")
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
)
