"""The picture of the selection: the keys the indexer picks for a query, beside where dense attention puts its mass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inazuma.errors import UserError
from inazuma.report.charts import legend, percent, picture, stretched
from inazuma.report.page import escape

_MASS_HEIGHT, _ROW_HEIGHT, _GAP = 96, 14, 5
_BEFORE, _AFTER, _AROUND = 64, 8, 8
_HEAVIEST = 6


@dataclass(frozen=True)
class Query:
    """One query of one layer: `attention` is the dense attention's mass on each key up to `position` itself.

    `picked` are the keys of the indexer, `best` as many keys with the most mass, `recent` as many keys up to the query.
    """

    position: int
    attention: Sequence[float]
    picked: frozenset[int]
    best: frozenset[int]
    recent: frozenset[int]

    @classmethod
    def of(cls, record: Mapping[str, Any], topk: int, where: str) -> Query:
        """The query of a record; `UserError` says `where` a record contradicts itself."""
        position, attention, selected = record["position"], record["attention"], record["selected"]
        keys = range(position + 1)
        if len(attention) != len(keys) or not set(selected) <= set(keys):
            raise UserError(f"{where}: the query at {position} has keys after it, or not one mass a key up to it")
        count = min(topk, len(keys))
        best = sorted(keys, key=lambda key: (-attention[key], key))[:count]
        return cls(position, attention, frozenset(selected), frozenset(best), frozenset(keys[-count:]))

    def share(self, keys: Iterable[int]) -> float:
        """The share of the dense attention's mass that lies on `keys`."""
        return math.fsum(self.attention[key] for key in keys) / math.fsum(self.attention)


def selection_section(record: Mapping[str, Any], where: str) -> str:
    """The pictures of all queries of a selection record, as HTML; `where` names the record in errors."""
    tokens, topk = record["tokens"], record["topk"]
    queries = [Query.of(entry, topk, where) for entry in record["queries"]]
    entries = [
        ("picked by the indexer", "picked"),
        (f"missed: among dense attention’s heaviest {topk}, not picked", "missed"),
        ("neither", "other"),
    ]
    return (
        f"<p>Layer {record['layer']} reads a stretch of validation text that no training step saw. For each query, the "
        "picture shows every token up to it: upward the mass that dense attention gives it (on a logarithmic scale "
        f"that starts at zero), below the {topk} keys that the indexer picks without computing that attention, and the "
        "heavy ones that it misses.</p>" + legend(entries) + "".join(_query(query, tokens, topk) for query in queries)
    )


def _query(query: Query, tokens: Sequence[str], topk: int) -> str:
    position = query.position
    if position < topk:
        kept = f"All {position + 1} keys fit into {topk}: nothing is left out here."
    else:
        kept = (
            f"{len(query.picked)} of {position + 1:,} keys picked; they hold "
            f"<b>{percent(query.share(query.picked), 1)}</b> of the dense attention’s mass. The best choice of as many "
            f"would hold {percent(query.share(query.best), 1)}, and keeping simply the last {topk} "
            f"would hold {percent(query.share(query.recent), 1)}."
        )
    context = range(max(0, position - _BEFORE), position + 1)
    following = "".join(map(_visible, tokens[position + 1 : position + 1 + _AFTER]))
    return (
        f'<article class="query"><h3>Query {position:,}: {escape(repr(tokens[position]))}</h3>'
        f'<p class="note">{kept}</p>'
        + _strip(query, len(tokens))
        + f'<pre class="text">{_marked(query, tokens, context)}<i class="next">{following}</i></pre>'
        + _heaviest(query, tokens, context)
        + "</article>"
    )


def _strip(query: Query, width: int) -> str:
    """Mass above, picks below, over the positions of the whole window, so that all queries share one axis."""
    most = max(query.attention)
    height = _MASS_HEIGHT + 2 * (_GAP + _ROW_HEIGHT)

    def up(mass: float) -> float:
        # A key of 0.1 % has to be seen beside one of 30 %: logarithmic above an even share, but starting at zero.
        return _MASS_HEIGHT * math.log1p(width * mass) / math.log1p(width * most)

    def columns(keys: Collection[int], style: str) -> str:
        path = ""
        for key in sorted(keys):
            if tall := round(up(query.attention[key]), 1):
                path += f"M{1000 * key / width:.1f} {_MASS_HEIGHT}v-{tall}h{1000 / width:.2f}v{tall}z"
        return f'<path class="bar {style}" d="{path}"/>'

    def row(keys: Collection[int], style: str, number: int) -> str:
        top = _MASS_HEIGHT + _GAP + number * (_GAP + _ROW_HEIGHT)
        path = ""
        for start, stop in runs(keys):
            across = f"{1000 * (stop - start) / width:.2f}"
            path += f"M{1000 * start / width:.1f} {top}h{across}v{_ROW_HEIGHT}h-{across}z"
        return f'<path class="bar {style}" d="{path}"/>'

    missed = query.best - query.picked
    neither = frozenset(range(query.position + 1)) - query.picked - missed
    ahead = 1000 * (query.position + 1) / width
    shapes = (
        f'<rect class="ahead" x="{ahead:.1f}" width="{1000 - ahead:.1f}" y="0" height="{height}"/>'
        + columns(neither, "other")
        + columns(query.picked, "picked")
        + columns(missed, "missed")
        + row(query.picked, "picked", 0)
        + row(missed, "missed", 1)
    )
    axes = ""
    for mass in (1.0, 0.1, 0.01, 0.001):
        if mass <= most and up(mass) >= 10:
            y = round(_MASS_HEIGHT - up(mass), 1)
            axes += f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
            axes += f'<text x="-8" y="{y + 4}" text-anchor="end">{100 * mass:g}\u202f%</text>'
    axes += f'<line class="axis" x1="0" x2="100%" y1="{_MASS_HEIGHT + 1}" y2="{_MASS_HEIGHT + 1}"/>'
    for number, name in enumerate(("picked", "missed")):
        y = _MASS_HEIGHT + (number + 1) * (_GAP + _ROW_HEIGHT) - 3
        axes += f'<text x="-8" y="{y}" text-anchor="end">{name}</text>'
    for part, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        axes += f'<text x="{100 * part:g}%" y="{height + 16}" text-anchor="{anchor}">{round(part * width):,}</text>'
    axes += f'<text x="50%" y="{height + 33}" text-anchor="middle">position of the key</text>'
    label = (
        f"Mass of dense attention over {query.position + 1} keys; the {len(query.picked)} picked keys hold "
        f"{percent(query.share(query.picked), 1)} of it, {len(missed)} of the heaviest keys are missed."
    )
    return picture(axes + stretched(shapes, height), height=height, label=label)


def runs(keys: Iterable[int]) -> list[tuple[int, int]]:
    """Stretches [start, stop) of consecutive keys."""
    stretches: list[tuple[int, int]] = []
    for key in sorted(keys):
        if stretches and stretches[-1][1] == key:
            stretches[-1] = (stretches[-1][0], key + 1)
        else:
            stretches.append((key, key + 1))
    return stretches


def _heaviest(query: Query, tokens: Sequence[str], context: range) -> str:
    """The keys with the most mass outside the text shown already, each with the words around it."""
    chosen: list[int] = []
    for key in sorted(range(context.start), key=lambda key: -query.attention[key]):
        if all(abs(key - other) > _AROUND for other in chosen) and query.attention[key] > 0:
            chosen.append(key)
        if len(chosen) == _HEAVIEST:
            break
    if not chosen:
        return ""
    items = ""
    for key in chosen:
        around = range(max(0, key - _AROUND), min(context.start, key + _AROUND + 1))
        state = "picked" if key in query.picked else "not picked"
        items += (
            f'<li><span class="note">{percent(query.attention[key], 2)} on key {key:,}, {query.position - key:,} '
            f'back: {state}</span><pre class="text">{_marked(query, tokens, around, key)}</pre></li>'
        )
    return f'<p class="note">Further back, where the mass is heaviest:</p><ol class="heaviest">{items}</ol>'


def _marked(query: Query, tokens: Sequence[str], keys: range, named: int | None = None) -> str:
    """The text of `keys`, each marked as picked or missed; the query's own token, or the `named` key, is framed."""
    parts = []
    for key in keys:
        styles = ["p"] if key in query.picked else ["m"] if key in query.best else []
        if key == (query.position if named is None else named):
            styles.append("q")
        hint = f"key {key}: {percent(query.attention[key], 2)}"
        parts.append(f'<i class="{" ".join(styles)}" title="{hint}">{_visible(tokens[key])}</i>')
    return "".join(parts)


def _visible(token: str) -> str:
    """A token as HTML whose line breaks can be seen, and so be marked."""
    return escape(token.replace("\n", "↵\n"))
