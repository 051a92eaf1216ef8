from __future__ import annotations


def write_report(out):
    pass
