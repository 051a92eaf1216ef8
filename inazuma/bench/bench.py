"""`inazuma bench ops`: every operator beside PyTorch's dense attention, as a run that can be checked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from inazuma.bench.cases import DENSE, FORWARD_ONLY, OPERATORS, PASSES, Call, Pass, Shape, Tensors, call_of, work
from inazuma.bench.peers import OUR_LAYER, Contestant, peers
from inazuma.bench.report import write_report
from inazuma.bench.timing import ceilings, free_memory, measure_first_call, seconds_of, take_turns
from inazuma.errors import UserError
from inazuma.files import check_fresh, write_json
from inazuma.ops import engine_for
from inazuma.runs.lines import encode_line
from inazuma.runs.run import Run
from inazuma.runs.verify import produce

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONGEST = 1 << 20
_WIDTHS = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_RECORDS = "records/measurements.jsonl"
_FACTS = "records/facts.json"


@dataclass(frozen=True, kw_only=True)
class BenchSize:
    """What is measured; the default takes about two minutes on two cores."""

    lengths: Sequence[int] = (1024, 2048, 4096, 8192)
    dtype: str | None = None
    """By default bfloat16 on a GPU and float32 on a CPU."""
    repeats: int = 3
    limit: float = 30.0
    """Seconds: an operator whose turns at a length would take longer together is skipped there."""
    shape: Shape = field(default_factory=Shape)
    warm_up: int = 1024
    """Tokens of each operator's first call: its threads and code are there then, and how long it takes can be foreseen
    for the lengths. Of a shorter call little but its fixed costs would be seen."""
    copied: int = 1 << 28
    """Bytes: more than caches hold."""
    widths: Sequence[int] | None = None
    """Of the matrices whose product is the ceiling; the fastest width counts. By default what suits the device."""

    def __post_init__(self) -> None:
        if not self.lengths:
            raise UserError("lengths: at least one is needed")
        for length in self.lengths:
            if not 1 <= length <= LONGEST:
                raise UserError(f"lengths: expected 1 to {LONGEST:,} tokens, got {length:,}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.repeats < 1:
            raise UserError(f"repeats: at least 1 is needed, got {self.repeats}")
        if not 0 < self.limit < math.inf:
            raise UserError(f"limit: expected a finite number of seconds above 0, got {self.limit:g}")


def parse_lengths(text: str) -> tuple[int, ...]:
    """ "1024,2048" as ascending numbers, each once; 1K is 1024."""
    lengths = set()
    for word in text.split(","):
        digits, unit = (word.strip()[:-1], 1024) if word.strip().upper().endswith("K") else (word.strip(), 1)
        if not (digits.isascii() and digits.isdigit()):
            raise UserError(f"lengths: expected numbers such as 1024,2048 or 1K,2K, got {word.strip()!r}")
        lengths.add(int(digits) * unit)
    return tuple(sorted(lengths))


def run_bench(
    out: Path,
    *,
    size: BenchSize,
    command: Sequence[str],
    engine: str = "auto",
    compare: bool = False,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Measures into the run folder `out`; returns the figures of its result.json.

    `progress` gets what is measured now, and how many of how many timings are done.

    Raises:
        UserError: `out` exists (without `force`), or the engine cannot run here.
    """
    check_fresh(out, force=force)
    device = "cuda" if torch.cuda.is_available() and engine != "cpu" else "cpu"
    name = size.dtype or ("bfloat16" if device == "cuda" else "float32")
    dtype = DTYPES[name]
    chosen = engine_for(torch.zeros(1, dtype=dtype, device=device), engine=engine)
    contestants = [Contestant(one, DENSE, partial(call_of, one)) for one in (*OPERATORS, DENSE)]
    found, missing = peers(device, dtype) if compare else ([], [])
    contestants += found
    config = {
        "lengths": list(size.lengths),
        "dtype": name,
        "device": device,
        "engine": engine,
        "repeats": size.repeats,
        "limit": size.limit,
        "compare": compare,
        "shape": vars(size.shape),
        "copied_bytes": size.copied,
        "product_widths": list(size.widths or _WIDTHS[device]),
    }
    run = Run.create(out, command=command, config=config, seeds={"seed": 0}, force=force)
    try:
        (out / _RECORDS).parent.mkdir()
        bench = _Bench(out / _RECORDS, size, dtype, device, chosen, contestants, progress)
        bench.measure()
        facts = {
            "device": torch.cuda.get_device_name() if device == "cuda" else run.manifest["machine"]["processor"],
            "dtype": name,
            "engine": chosen,
            "threads": torch.get_num_threads(),
            "load_before": bench.load,
            "skipped": bench.skipped,
            "missing": missing,
            "against": {one.name: one.against for one in contestants},
        }
        write_json(out / _FACTS, facts)
        result = produce(out, evidence(bench.done, facts))
        write_report(out)
        run.finish("finished")
        return result
    except BaseException as error:
        run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


class _Bench:
    """Measures length by length; what came out is in the records, in `done` and in `skipped`."""

    def __init__(
        self,
        records: Path,
        size: BenchSize,
        dtype: torch.dtype,
        device: str,
        engine: str,
        contestants: Sequence[Contestant],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.records, self.size, self.dtype, self.device, self.engine = records, size, dtype, device, engine
        self.entries = [
            (kind, one) for kind in PASSES for one in contestants if kind == "forward" or one.name not in FORWARD_ONLY
        ]
        self.progress = progress
        self.ticks = 0
        self.known: dict[tuple[Pass, str], tuple[int, float, dict[str, int]]] = {}
        """The longest length called so far, seconds of a call there, and its memory in bytes."""
        self.done: list[tuple[Pass, str, int, bool]] = []
        """Pass, operator, length, and whether its memory is known."""
        self.skipped: list[str] = []
        self.load = round(os.getloadavg()[0], 2)

    def measure(self) -> None:
        size = self.size
        self.measure_ceilings()
        self.warm_up(size.warm_up)
        for length in size.lengths:
            # Refused ones are named before anything is allocated for them.
            entries = [(kind, one) for kind, one in self.entries if not self.refused(kind, one.name, length)]
            if entries:
                x = Tensors(length, size.shape, self.dtype, self.device, self.engine)
                for kind in PASSES:
                    self.measure_pass(kind, [one for other, one in entries if other == kind], x)
        # Again, since another program may have slowed the first.
        self.measure_ceilings()

    def measure_ceilings(self) -> None:
        self.tick("ceilings", 0)
        widths = self.size.widths or _WIDTHS[self.device]
        for record in ceilings(self.dtype, self.device, copied=self.size.copied, widths=widths):
            self.write(record)

    def warm_up(self, length: int) -> None:
        x = Tensors(length, self.size.shape, self.dtype, self.device, self.engine)
        for kind, one in self.entries:
            self.tick(f"warming up: {one.name}", 0)
            call = one.make(kind, x)
            _, memory = measure_first_call(call, self.device)
            self.known[kind, one.name] = length, seconds_of(call, self.device), memory

    def refused(self, kind: Pass, name: str, length: int) -> bool:
        """Whether a timing would take too long or need too much memory, as far as the longest one before tells."""
        known, seconds, memory = self.known[kind, name]
        growth = length / known
        if name in (*OPERATORS, DENSE):
            flops = (work(name, kind, one, self.size.shape, self.dtype.itemsize).flops for one in (length, known))
            seconds *= next(flops) / next(flops)
        else:
            seconds *= growth**2
        seconds *= self.size.repeats + 1
        # What others wrote may keep queries x keys; nothing of ours does, nor PyTorch's attention.
        power = 1 if name in (*OPERATORS, DENSE, OUR_LAYER) else 2
        needed = growth * memory["made_bytes"] + growth**power * memory.get("extra_bytes", 0)
        free = free_memory(self.device)
        why = None
        if seconds > self.size.limit:
            why = f"it would take about {seconds:,.0f} s, more than the limit of {self.size.limit:g} s"
        elif length > known and free is not None and needed > 0.8 * free:
            why = f"it could need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"
        if why:
            self.skip(kind, name, length, why)
        return why is not None

    def skip(self, kind: Pass, name: str, length: int, why: str) -> None:
        self.skipped.append(f"{name}, {kind}, {length:,} tokens: {why}")
        self.tick(name, self.size.repeats + 1)

    def measure_pass(self, kind: Pass, contestants: Sequence[Contestant], x: Tensors) -> None:
        calls: dict[str, Call] = {}
        expected: dict[str, float] = {}
        for one in contestants:
            self.tick(f"{x.length:,} tokens, {kind}: {one.name}", 1)
            try:
                call = one.make(kind, x)
                seconds, memory = measure_first_call(call, self.device)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self.skip(kind, one.name, x.length, "it ran out of memory")
                continue
            calls[one.name] = call
            # The first call may have been slowed by what comes up only once.
            expected[one.name] = min(seconds, seconds_of(call, self.device)) if seconds < 0.2 else seconds
            if x.length >= self.known[kind, one.name][0]:
                self.known[kind, one.name] = x.length, expected[one.name], memory
            record = {"operator": one.name, "pass": kind, "length": x.length}
            if one.name in (*OPERATORS, DENSE):
                record |= work(one.name, kind, x.length, x.shape, self.dtype.itemsize)._asdict()
            self.write(record | memory)
            self.done.append((kind, one.name, x.length, "extra_bytes" in memory))
        for record in take_turns(calls, expected, self.size.repeats, self.device):
            self.write({"pass": kind, "length": x.length, **record})
            self.tick(f"{x.length:,} tokens, {kind}: {record['operator']}", 1)

    def write(self, record: Mapping[str, Any]) -> None:
        with open(self.records, "ab") as handle:
            handle.write(encode_line(record))

    def tick(self, phase: str, steps: int) -> None:
        self.ticks += steps
        self.progress(phase, self.ticks, len(self.size.lengths) * len(self.entries) * (self.size.repeats + 1))


def _out_of_memory(error: BaseException) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error)


def evidence(done: Sequence[tuple[Pass, str, int, bool]], facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How every figure of result.json follows from the records. Units are seconds, bytes and FLOP."""
    figures: dict[str, Mapping[str, Any]] = {
        name: {"formula": "value", "record": _FACTS, "field": name} for name in facts if name != "against"
    }
    for kind, unit in (("copy", "bytes"), ("product", "flops")):
        figures[f"{kind}_{unit}_per_second"] = {
            "formula": "greatest_rate",
            "record": _RECORDS,
            "columns": [unit, "seconds"],
            "where": {"ceiling": kind},
        }
    measured = {(kind, name, length) for kind, name, length, _ in done}
    for kind, name, length, has_memory in done:
        at = {"record": _RECORDS, "where": {"pass": kind, "operator": name, "length": length}}
        place = f"{kind}.{name}.{length}"
        figures[f"seconds.{place}"] = {"formula": "median", "column": "seconds", **at}
        if has_memory:
            figures[f"extra_bytes.{place}"] = {"formula": "last", "column": "extra_bytes", **at}
        if name in (*OPERATORS, DENSE):
            for column in ("flops", "bytes"):
                figures[f"{column}.{place}"] = {"formula": "last", "column": column, **at}
            pairs = {"flops_per_second": ("flops", "seconds"), "flops_per_byte": ("flops", "bytes")}
            for figure, of in pairs.items():
                figures[f"{figure}.{place}"] = {"formula": "ratio", "of": [f"{part}.{place}" for part in of]}
            of = [f"flops_per_second.{place}", "product_flops_per_second", "copy_bytes_per_second"]
            figures[f"roofline_share.{place}"] = {
                "formula": "roofline_share",
                "of": [*of, f"flops_per_byte.{place}"],
            }
        against = facts["against"][name]
        if against != name and (kind, against, length) in measured:
            of = [f"seconds.{kind}.{other}.{length}" for other in (against, name)]
            figures[f"times_as_fast.{place}"] = {"formula": "ratio", "of": of}
    for kind in PASSES:
        lengths = [length for other, name, length, _ in done if (other, name) == (kind, "dsa")]
        of = {str(length): f"times_as_fast.{kind}.dsa.{length}" for length in lengths}
        of = {length: name for length, name in of.items() if name in figures}
        if of:
            figures[f"dsa_ahead.{kind}"] = {"formula": "lengths_ahead", "of": of}
    return figures
