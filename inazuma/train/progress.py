"""The live display of a training: stage, loss, tokens a second, time left."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10
"""How often a line is printed where there is no terminal to draw on."""


class TrainingDisplay:
    """A context manager whose `watch` is given to `Trainer.train`; a bar on a terminal, else now and then a line."""

    def __init__(self, name: str, total_steps: int, done: int = 0, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.name, self.total, self.done = name, total_steps, done
        self.began = self.printed = time.monotonic()
        self.bits = ""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=total_steps, completed=done, figures="")

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def watch(self, line: dict[str, Any]) -> None:
        """Shows one line of `metrics.jsonl`."""
        if line["kind"] == "warning":
            self.console.print(f"{self.name}  step {line['step']}  {line['message']}", highlight=False, soft_wrap=True)
            return
        if line["kind"] == "validation":
            self.bits = f"  {line['bits_per_byte']:.3f} bits/byte"
            return
        figures = f"{line['stage']:<6}  loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s{self.bits}"
        self.bar.update(self.task, completed=line["step"], figures=figures)
        now = time.monotonic()
        last = line["step"] == self.total
        if not self.console.is_terminal and (now - self.printed > PLAIN_SECONDS or last):
            self.printed = now
            left = (now - self.began) / max(1, line["step"] - self.done) * (self.total - line["step"])
            place = f"{self.name}  step {line['step']}/{self.total}"
            self.console.print(f"{place}  {figures}  {left:.0f} s left", highlight=False, soft_wrap=True)
