"""What came out: sentences and a table for the terminal, and `report.html` with the roofline.

Everything is computed from the run folder's `result.json` and `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inazuma.bench.cases import DENSE, FORWARD_ONLY, OPERATORS, PASSES
from inazuma.files import atomic_file, read_json
from inazuma.report.charts import Axis, Series, line_chart, percent, short
from inazuma.report.page import escape, page
from inazuma.report.provenance import provenance

PASS_NAMES = {"forward": "Forward", "training": "Forward and backward"}
COLUMNS = ("operator", "tokens", "time", "vs dense", "GFLOP/s", "of roof", "memory")
_STYLES = dict(zip(OPERATORS, ("sparse", "layer-3", "layer-6", "layer-7", "layer-4", "layer-5"), strict=True))
_STYLES[DENSE] = "dense"
_PEER_STYLES = ("layer-2", "rival", "other")


class Row(NamedTuple):
    """A line of the table; `cells` are `COLUMNS` as text."""

    kind: str
    operator: str
    length: int
    cells: tuple[str, ...]


def rows(result: Mapping[str, Any]) -> Iterator[Row]:
    """Everything that was measured, by pass, operator and length."""
    for kind, operators in result["seconds"].items():
        for operator, by_length in operators.items():
            for length, seconds in by_length.items():

                def figure(name: str, place: tuple[str, ...] = (kind, operator, length)) -> Any:
                    return _at(result, name, *place)

                ratio, speed, share = (figure(x) for x in ("times_as_fast", "flops_per_second", "roofline_share"))
                extra = figure("extra_bytes")
                cells = (
                    operator,
                    f"{int(length):,}",
                    duration(seconds),
                    "" if ratio is None else f"{ratio:.2f}×",
                    "" if speed is None else f"{speed / 1e9:,.1f}",
                    "" if share is None else percent(share),
                    "" if extra is None else size(extra),
                )
                yield Row(kind, operator, int(length), cells)


def _at(result: Mapping[str, Any], *keys: str) -> Any:
    """The value at these keys; None where one is not there."""
    here: Any = result
    for key in keys:
        if key not in here:
            return None
        here = here[key]
    return here


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * factor:.3g} {unit}"


def size(count: float) -> str:
    """Bytes in the unit that suits them, powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def verdict(result: Mapping[str, Any]) -> str:
    """Where DSA overtakes dense attention, by what was measured, and how far it gets."""
    return " ".join(_crossover(result, kind) for kind in PASSES)


def _crossover(result: Mapping[str, Any], kind: str) -> str:
    name = PASS_NAMES[kind]
    ratios = {int(length): ratio for length, ratio in (_at(result, "times_as_fast", kind, "dsa") or {}).items()}
    if not ratios:
        return f"{name}: at no length were both DSA and dense SDPA timed."
    ahead = result["dsa_ahead"][kind]
    behind = [length for length in ratios if length not in ahead]
    longest = max(ratios)
    if not ahead:
        return f"{name}: DSA is not faster than dense SDPA at {longest:,} tokens, the longest length that both ran."
    gain = f"{ratios[longest]:.1f} times as fast at {longest:,}"
    if not behind:
        return f"{name}: DSA is faster than dense SDPA at every measured length, from {ahead[0]:,} tokens, and {gain}."
    return f"{name}: DSA overtakes dense SDPA between {max(behind):,} and {ahead[0]:,} tokens, and is {gain}."


def ceilings_text(result: Mapping[str, Any]) -> str:
    """The machine's two ceilings in one line."""
    return (
        f"{result['device']}, {result['threads']} threads, {result['dtype']}: copies "
        f"{result['copy_bytes_per_second'] / 1e9:,.1f} GB/s, multiplies matrices at "
        f"{result['product_flops_per_second'] / 1e9:,.0f} GFLOP/s"
    )


def write_report(folder: Path) -> Path:
    """Writes `report.html` into the run `folder`, and returns its path."""
    folder = Path(folder)
    result, manifest = read_json(folder / "result.json"), read_json(folder / "manifest.json")
    sections = (_headline, _times, _rooflines, _memory, _table, _absent)
    body = "\n".join([*(section(result) for section in sections), _made(folder, result, manifest)])
    path = folder / "report.html"
    with atomic_file(path) as handle:
        handle.write(page("稲妻 inazuma: the operators on this machine", body))
    return path


def _headline(result: Mapping[str, Any]) -> str:
    facts = {
        "Device": result["device"],
        "Engine": result["engine"],
        "Numbers": result["dtype"],
        "Threads": str(result["threads"]),
        "Copies": f"{result['copy_bytes_per_second'] / 1e9:,.1f} GB/s",
        "Matrix products": f"{result['product_flops_per_second'] / 1e9:,.0f} GFLOP/s",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"""<header><h1><span lang="ja">稲妻</span><b>inazuma</b> · the operators on this machine</h1>
<p class="verdict">{escape(verdict(result))}</p></header>
<dl class="facts">{items}</dl>"""


def _style(result: Mapping[str, Any], operator: str) -> str:
    if operator in _STYLES:
        return _STYLES[operator]
    others = list(dict.fromkeys(name for by in result["seconds"].values() for name in by if name not in _STYLES))
    return _PEER_STYLES[others.index(operator) % len(_PEER_STYLES)]


def tokens(length: float) -> str:
    """A length as people say it: 4K is 4,096."""
    return f"{length / 1024:g}K" if length % 1024 == 0 else f"{length:g}"


def _over_length(result: Mapping[str, Any], figure: str, kind: str, text: Any, label: str) -> str:
    """A figure of every operator over the length, both logarithmic."""
    found = result.get(figure, {}).get(kind, {})
    series = [
        Series(name, [(int(length), value) for length, value in by.items()], _style(result, name), dots=True)
        for name, by in found.items()
    ]
    lengths = sorted({int(length) for by in found.values() for length in by})
    axis = Axis("tokens", "at {} tokens", logarithmic=True, text=tokens, ticks=lengths)
    return line_chart(series, label=label, x_axis=axis, logarithmic=True, y_text=text, height=320)


def _times(result: Mapping[str, Any]) -> str:
    figures = "".join(
        f"<figure><h3>{name}</h3>"
        f"{_over_length(result, 'seconds', kind, duration, f'{name}: seconds a call over the length')}"
        f"<figcaption>{escape(_crossover(result, kind))}</figcaption></figure>"
        for kind, name in PASS_NAMES.items()
    )
    return f"""<section><h2>Time against length</h2>
<p>Medians of turns that all took one after another in one process. <i>dsa</i> is the whole of sparse attention:
selecting tokens and attending to them, and in training the indexer’s loss too. Both axes are logarithmic.</p>
<div class="pair">{figures}</div></section>"""


def _rooflines(result: Mapping[str, Any]) -> str:
    figures = "".join(f"<figure><h3>{name}</h3>{roofline(result, kind)}</figure>" for kind, name in PASS_NAMES.items())
    return f"""<section><h2>Roofline</h2>
<p>Up: the arithmetic done in a second. Across: the arithmetic for each byte that has to move. The dashed roof is what
PyTorch reached on this machine with copies (its slope) and with products of large matrices (its flat part); a kernel
that uses the processor better than PyTorch’s product lies above it. Each dot is a length;
lines join an operator’s lengths.</p>
<div class="pair">{figures}</div>
<p class="note">Arithmetic and bytes are what the operator’s definition needs, not what an engine does; selection,
softmax and ReLU count as no arithmetic, so that an operator which spends its time there lies low. Selected keys and
values count once for every query that reads them. A dot above the slope means that caches served them again.</p>
</section>"""


def roofline(result: Mapping[str, Any], kind: str) -> str:
    """Achieved speed over arithmetic intensity, under the measured ceilings."""
    speeds = result.get("flops_per_second", {}).get(kind, {})
    series = [
        Series(
            name,
            [(_at(result, "flops_per_byte", kind, name, length), speed) for length, speed in by.items()],
            _style(result, name),
            dots=True,
        )
        for name, by in speeds.items()
    ]
    product, bandwidth = result["product_flops_per_second"], result["copy_bytes_per_second"]
    ridge = product / bandwidth
    intensities = [x for one in series for x, _ in one.points]
    low, high = min([ridge, *intensities]) / 2, max([ridge, *intensities]) * 2
    roof = Series("ceilings", [(low, low * bandwidth), (ridge, product), (high, product)], "ceiling")
    axis = Axis("FLOP per byte", "at {} FLOP per byte", logarithmic=True, text=lambda x: short(float(f"{x:.3g}")))
    return line_chart(
        [*series, roof],
        label=f"{PASS_NAMES[kind]}: achieved speed of every operator over its arithmetic intensity, under a roof of "
        f"{bandwidth / 1e9:.1f} GB/s and {product / 1e9:.0f} GFLOP/s",
        x_axis=axis,
        logarithmic=True,
        y_text=lambda speed: f"{speed / 1e9:.3g} G",
        height=320,
    )


def _memory(result: Mapping[str, Any]) -> str:
    if "extra_bytes" not in result:
        return "<section><h2>Memory</h2><p>This system does not tell how much memory a call takes.</p></section>"
    figures = "".join(
        f"<figure><h3>{name}</h3>"
        f"{_over_length(result, 'extra_bytes', kind, size, f'{name}: extra memory over the length')}</figure>"
        for kind, name in PASS_NAMES.items()
    )
    return f"""<section><h2>Memory</h2>
<p>The most that one call had in use besides its inputs, outputs and gradients. An operator that needed none that
could be seen is left out of the picture.</p>
<div class="pair">{figures}</div></section>"""


def _table(result: Mapping[str, Any]) -> str:
    found = list(rows(result))
    tables = ""
    for kind, name in PASS_NAMES.items():
        head = "".join(f'<th class="number">{escape(column)}</th>' for column in COLUMNS[1:])
        lines = ""
        for row in found:
            if row.kind == kind:
                numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in row.cells[1:])
                lines += f'<tr><th scope="row">{escape(row.operator)}</th>{numbers}</tr>'
        tables += (
            f'<figure><h3>{name}</h3><div class="wide"><table class="measures"><thead><tr><th>{COLUMNS[0]}</th>{head}'
            f"</tr></thead><tbody>{lines}</tbody></table></div></figure>"
        )
    return f"""<section><h2>Every figure</h2>{tables}
<p class="note">“vs dense” is how many times as fast as PyTorch’s dense attention of the same length, for a whole layer
of inazuma how many times as fast as that of transformers. “of roof” is the share of what the roofline allows.
“memory” is what a call takes besides inputs, outputs and gradients.</p></section>"""


def _absent(result: Mapping[str, Any]) -> str:
    lists = ""
    for title, field in (("Skipped", "skipped"), ("Not compared", "missing")):
        if result[field]:
            items = "".join(f"<li>{escape(line)}</li>" for line in result[field])
            lists += f'<h3>{title}</h3><ul class="plain">{items}</ul>'
    return f"<section><h2>What is not here</h2>{lists}</section>" if lists else ""


def _made(folder: Path, result: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    config = manifest["config"]
    more = {
        "Sizes": config["shape"],
        "Turns": config["repeats"],
        "Threads": result["threads"],
        "Load before": str(result["load_before"]),
    }
    return f"""<section><h2>How it was made</h2>
{provenance(folder, manifest, more)}
<h3>What this does not show</h3>
<ul class="plain">
<li>Inputs are drawn from a normal distribution: a trained indexer selects tokens that lie closer together, which caches
serve better.</li>
<li>{escape(" and ".join(FORWARD_ONLY))} has no backward pass, and engines differ in which pass of the indexer’s loss
does the work; so the backward pass is timed together with its forward pass.</li>
<li>Other programs on the machine slow all alike: turns alternate, but the ceilings are taken only
before and after everything else, and the faster one counts.</li>
</ul></section>"""
