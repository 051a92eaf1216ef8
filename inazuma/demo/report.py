"""The demo's report: one HTML file that says what came out, shows it, and says how it was made.

It only reads the run folder, and every sentence with a figure in it is computed from what lies there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inazuma.demo.selection import selection_section
from inazuma.errors import UserError
from inazuma.files import atomic_file, read_json
from inazuma.report.charts import Band, Series, bar, dumbbell, interval_chart, legend, line_chart, percent, short
from inazuma.report.page import escape, page
from inazuma.report.provenance import provenance
from inazuma.runs.lines import read_lines

AIM = 0.02
"""How far above its dense twin, relatively, the sparse model may end."""

_RIVALS = {"dense": "Dense twin", "ngram": "n-gram model", "gzip": "gzip"}
_MODELS = ("sparse", *_RIVALS)
_RESULT = (
    *(f"{group}.{model}" for group in ("bits_per_byte", "interval") for model in _MODELS),
    *(f"difference.{model}.{figure}" for model in _RIVALS for figure in ("relative", "interval")),
    *("recall_at_k", "attention_mass", "recall_recent", "attention_mass_recent"),
    *("tokens_per_second", "context", "topk", "engine", "parameters"),
    *("training_tokens", "validation_documents", "seconds"),
)


def write_report(folder: Path) -> Path:
    """Writes `report.html` from the records in the demo's run `folder`, and returns its path.

    Read are `result.json`, `manifest.json`, `{sparse,dense}/metrics.jsonl`, `records/selection.json`,
    `records/samples.json` (where `text` is what follows `prompt`) and, where there is one, `data/manifest.json`.
    A file or field that is missing is a `UserError` that names it.
    """
    folder = Path(folder)
    result = _load(folder / "result.json", _RESULT)
    selection = _load(folder / "records/selection.json", ("layer", "topk", "tokens", "queries"))
    samples = read_json(folder / "records/samples.json")
    manifest = read_json(folder / "manifest.json")
    corpus = folder / "data/manifest.json"
    metrics = {name: list(read_lines(folder / name / "metrics.jsonl")) for name in ("sparse", "dense")}
    body = "\n".join(
        (
            _headline(result),
            _curves(metrics["sparse"], metrics["dense"]),
            "<section><h2>What the indexer picks</h2>"
            + selection_section(selection, str(folder / "records/selection.json"))
            + "</section>",
            _layers(result),
            _samples(samples),
            _made(folder, result, manifest, read_json(corpus) if corpus.is_file() else {}),
        )
    )
    path = folder / "report.html"
    with atomic_file(path) as handle:
        handle.write(page("稲妻 inazuma: sparse attention from scratch", body))
    return path


def _load(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    """A JSON object that has all of these dotted fields."""
    value = read_json(path)
    for field in fields:
        here = value
        for key in field.split("."):
            if not isinstance(here, dict) or key not in here:
                raise UserError(f"{path}: no field {field!r}; the run that wrote it did not end in order")
            here = here[key]
    return value


def verdict(result: Mapping[str, Any]) -> str:
    """What came out, in plain sentences: against the dense twin and its aim, then against the baselines."""
    relative, (low, high) = _difference(result, "dense")
    size = f"{100 * abs(relative):.1f}"
    where = f"{size}\u202f% {'above' if relative > 0 else 'below'}" if float(size) else "level with"
    said = [
        f"Reading {result['topk']:,} of up to {result['context']:,} tokens, the sparse model ends {where} its dense "
        f"twin in bits per byte (95\u202f% interval {_signed(low)} to {_signed(high)}\u202f%)."
    ]
    aim = f"the {percent(AIM)} that the demo aims at"
    if relative > AIM:
        said.append(f"That is worse than {aim}.")
    elif high > AIM:
        said.append(f"That is within {aim}, though the interval does not rule out more.")
    else:
        said.append(f"That is within {aim}.")
    return " ".join([*said, *_against_baselines(result)])


def _difference(result: Mapping[str, Any], rival: str) -> tuple[float, list[float]]:
    """How far the sparse model is above the rival in bits per byte, relatively, and the paired interval of that."""
    return result["difference"][rival]["relative"], result["difference"][rival]["interval"]


def _against_baselines(result: Mapping[str, Any]) -> list[str]:
    """How the sparse model does against the baselines; a lead is called unclear where its interval reaches zero."""
    ours = result["bits_per_byte"]["sparse"]
    ahead, behind = [], []
    for baseline, name in (("ngram", "an n-gram model"), ("gzip", "gzip")):
        theirs = result["bits_per_byte"][baseline]
        relative, (low, high) = _difference(result, baseline)
        if relative < 0:
            doubt = ", not clearly" if high >= 0 else ""
            interval = f"95\u202f% interval {_signed(low)} to {_signed(high)}\u202f%"
            ahead.append(f"{percent(-relative)} fewer bits than {name} ({interval}{doubt})")
        else:
            behind.append(f"It does not beat {name} ({ours:.2f} against {theirs:.2f} bits per byte).")
    return ([f"It needs {' and '.join(ahead)}."] if ahead else []) + behind


def _signed(share: float) -> str:
    """A relative difference in per cent, with its sign."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _headline(result: Mapping[str, Any]) -> str:
    full = 1.04 * max(interval[1] for interval in result["interval"].values())
    rows = ""
    for model, name in {"sparse": "Sparse", **_RIVALS}.items():
        value, interval = result["bits_per_byte"][model], result["interval"][model]
        style = model if model in ("sparse", "dense") else "baseline"
        rows += (
            f'<tr><th scope="row">{name}</th><td class="picture">{bar(value, interval, full=full, style=style)}</td>'
            f'<td class="number">{value:.3f}<small>{interval[0]:.2f} to {interval[1]:.2f}</small></td></tr>'
        )
    relative, interval = _difference(result, "dense")
    low, high = map(_signed, interval)
    said = f"Relative difference {_signed(relative)} %, 95 % interval {low} to {high} %"
    facts = {
        "Parameters": short(result["parameters"]),
        "Tokens trained on": short(result["training_tokens"]),
        "Context": f"{result['context']:,} tokens",
        "Read by each query": f"{result['topk']:,} tokens",
        "Training speed": f"{short(result['tokens_per_second'])} tokens/s",
        "Computing time": _duration(result["seconds"]),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"""<header><h1><span lang="ja">稲妻</span><b>inazuma</b> · sparse attention, trained from scratch</h1>
<p class="verdict">{escape(verdict(result))}</p></header>
<dl class="facts">{items}</dl>
<section><div class="pair">
<figure><h3>Bits per byte of validation text (lower is better)</h3>
<table class="measures"><tbody>{rows}</tbody></table></figure>
<figure><h3>Sparse against its dense twin</h3>{interval_chart(relative, interval, limit=AIM, label=said)}
<figcaption>{_signed(relative)}&#8239;% ({low} to {high}&#8239;%) in bits per byte. Dashed: the aim.</figcaption>
</figure>
</div>
<p class="note">All four read the same {result["validation_documents"]:,} validation documents. The lines are 95&#8239;%
intervals from drawing documents anew (bootstrap); the difference is paired, document by document, which is why it is
known more narrowly than either figure. They say how much the choice of documents matters, not how much another
training run would differ. The dense twin is the same model without an indexer, trained on the same tokens.</p>
</section>"""


def _curves(sparse: Sequence[Mapping[str, Any]], dense: Sequence[Mapping[str, Any]]) -> str:
    bands = stages(sparse)

    def by_layer(kind: str, column: str) -> list[Series]:
        rows = [(record["tokens"], record[column]) for record in sparse if record["kind"] == kind and column in record]
        count = max((len(values) for _, values in rows), default=0)
        return [
            Series(f"layer {i}", [(tokens, values[i]) for tokens, values in rows], _layer_style(i, count))
            for i in range(count)
        ]

    measured = []
    for name, records in (("sparse", sparse), ("dense", dense)):
        points = [(record["tokens"], record["bits_per_byte"]) for record in records if record["kind"] == "validation"]
        measured.append(Series(name, points, name, dots=True))
    learning = line_chart(
        measured,
        label="Validation bits per byte of the sparse and the dense model over training tokens",
        bands=bands,
        logarithmic=True,
    )
    divergence = line_chart(
        by_layer("train", "index_loss"),
        label="The indexer’s KL divergence by layer over training tokens",
        bands=bands,
        logarithmic=True,
        height=200,
    )
    shares = ""
    for column, name in (("recall_at_k", "Recall@k"), ("attention_mass", "Attention mass kept")):
        chart = line_chart(
            by_layer("validation", column),
            label=f"{name} by layer over training tokens",
            bands=bands,
            y_range=(0, 1),
            y_text=percent,
            height=200,
        )
        shares += f"<figure><h3>{name}</h3>{chart}</figure>"
    return f"""<section><h2>Learning</h2>
<p>The shaded stretches are the recipe’s stages. In <i>dense</i> every token reads all before it; in <i>warmup</i> only
the indexer learns, to predict where dense attention looks; in <i>sparse</i> each token reads only what the indexer
picks, and everything learns.</p>
<figure><h3>Bits per byte of validation text</h3>{learning}
<figcaption>Logarithmic upward. The stages are those of the sparse model; its dense twin stays dense.</figcaption>
</figure>
<figure><h3>The indexer’s KL divergence from the attention it imitates, in nats</h3>{divergence}
<figcaption>Logarithmic upward. In the dense stages it is taken over every token before the query, in the sparse one
over the picked ones only: where the stage changes, so does what is measured.</figcaption></figure>
<div class="pair">{shares}</div>
</section>"""


def stages(records: Sequence[Mapping[str, Any]]) -> list[Band]:
    """The stages a run went through, from its metrics: each begins at the tokens where the one before was last seen."""
    bands: list[Band] = []
    for record in records:
        tokens, stage = record["tokens"], record["stage"]
        start = bands[-1].stop if bands else 0
        if bands and bands[-1].name == stage:
            start = bands.pop().start
        bands.append(Band(stage, start, tokens))
    return bands


def _layer_style(layer: int, layers: int) -> str:
    """One of the eight colours from first to last layer."""
    return f"layer-{round(7 * layer / max(1, layers - 1))}"


def _layers(result: Mapping[str, Any]) -> str:
    topk = result["topk"]
    tables, said = "", []
    measures = (
        ("recall_at_k", "recall_recent", f"Recall@{topk}", f"finds {{}} of dense attention’s own heaviest {topk} keys"),
        ("attention_mass", "attention_mass_recent", "Attention mass kept", "keeps {} of its mass"),
    )
    for column, recent, name, sentence in measures:
        pairs = list(zip(result[column], result[recent], strict=True))
        rows = "".join(
            f'<tr><th scope="row">layer {i}</th><td class="picture">{dumbbell(theirs, ours)}</td>'
            f'<td class="number">{percent(ours, 1)}</td><td class="number">{percent(theirs, 1)}</td></tr>'
            for i, (ours, theirs) in enumerate(pairs)
        )
        tables += (
            f'<figure><h3>{name}</h3><table class="measures"><thead><tr><th></th><th class="picture"></th>'
            f'<th class="number">indexer</th><th class="number">last {topk}</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></figure>"
        )
        ours, theirs = (sum(pair[i] for pair in pairs) / len(pairs) for i in range(2))
        said.append(f"{sentence.format(percent(ours, 1))} (the last {topk} tokens: {percent(theirs, 1)})")
        worse = [str(i) for i, (ours, theirs) in enumerate(pairs) if ours <= theirs]
        if worse:
            said[-1] += f", but is no better than them in layer {', '.join(worse)}"
    key = legend([("the indexer", "sparse"), (f"keeping simply the last {topk} tokens", "recent")])
    return f"""<section><h2>Layer by layer</h2>
<p>At the end of training, averaged over the layers, the indexer {"; it ".join(said)}.</p>
{key}<div class="pair">{tables}</div></section>"""


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    blocks = "".join(
        f'<pre class="text"><b class="prompt">{escape(sample["prompt"])}</b>{escape(sample["text"])}</pre>'
        for sample in samples
    )
    return f"""<section><h2>What it writes</h2>
<p>The prompt is <b class="sparse">bold and coloured</b>; everything after it is the sparse model’s.</p>
{blocks}</section>"""


def _made(folder: Path, result: Mapping[str, Any], manifest: Mapping[str, Any], corpus: Mapping[str, Any]) -> str:
    read = {
        **{f"Corpus: {key}": value for key, value in manifest.get("config", {}).get("corpus", {}).items()},
        "Documents": {key.replace("_", " "): value for key, value in corpus.get("documents", {}).items() if value},
        **{
            f"Split: {name}": {key: split[key] for key in ("documents", "bytes", "tokens") if key in split}
            for name, split in corpus.get("splits", {}).items()
        },
    }
    return f"""<section><h2>How it was made</h2>
{provenance(folder, manifest, read)}
<h3>What this does not show</h3>
<ul class="plain">
<li>One seed: how much another training run would differ is not measured.</li>
<li>A small model of {short(result["parameters"])} parameters, trained on {short(result["training_tokens"])} tokens.
What holds here need not hold at a larger size.</li>
<li>No claim about speed: sparse attention saves work on long contexts, and {result["context"]:,} tokens are not long.
The attention was computed by the engine “{escape(result["engine"])}”.</li>
</ul></section>"""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
