"""The report of an evaluation, as a page and as Markdown: what failed first, then scores, each with its interval.

Everything is computed from the run's figures, samples and manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inazuma.evaluate.evidence import figure_name
from inazuma.evaluate.outcome import OUTCOMES, Sample
from inazuma.files import atomic_file
from inazuma.report.charts import bar, percent
from inazuma.report.page import escape, page
from inazuma.report.provenance import provenance

_FEW = 0.01
"""Up to this share of answers may be cut off without a word about it."""
_CEILING = 0.98
_ENOUGH = 20
"""Documents; of fewer, the bootstrap's intervals are too narrow."""
_SHOWN = 3
_LONGEST = 600


def write_reports(
    folder: Path, result: Mapping[str, Any], samples: Sequence[Sample], manifest: Mapping[str, Any]
) -> None:
    """Writes `report.html` and `report.md` into the run folder."""
    with atomic_file(folder / "report.md") as handle:
        handle.write(markdown(result, samples, manifest))
    with atomic_file(folder / "report.html") as handle:
        handle.write(html(folder, result, samples, manifest))


def model_name(manifest: Mapping[str, Any]) -> str:
    """The model as a person would name it."""
    model = manifest["config"]["model"]
    return model["path"] if model["kind"] == "checkpoint" else f"{model['name']} at {model['url']}"


def warnings(result: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    """What a reader must know before any score, in plain sentences."""
    found = []
    for task, score in result.get("tasks", {}).items():
        outcomes, n = score["outcomes"], score["n"]
        if outcomes["infrastructure_error"]:
            count = outcomes["infrastructure_error"]
            found.append(f"{task}: {count} items met infrastructure errors and are in no score.")
        if outcomes["invalid_item"]:
            reasons = Counter(
                sample.error or "a part of the prompt was dropped"
                for sample in samples
                if figure_name(sample.task) == task and sample.outcome == "invalid_item"
            )
            for reason, count in reasons.most_common(_SHOWN):
                found.append(f"{task}: {count} of the items were not asked or do not count: {reason}.")
        if not n:
            found.append(f"{task}: no item came back, so there is no score.")
            continue
        if outcomes["truncated"] > _FEW * n:
            worst, best = percent(score["worst"], 1), percent(score["best"], 1)
            found.append(
                f"{task}: {outcomes['truncated']} of {n} answers were cut off at the limit of tokens; the score lies "
                f"between {worst} and {best}, and the one as scored says less than it seems to."
            )
        low, _ = score["interval"]
        if "chance" in score and low <= score["chance"]:
            found.append(f"{task}: not shown to be above chance ({percent(score['chance'], 1)}).")
        if low > _CEILING:
            found.append(f"{task}: saturated; it cannot tell this model from a better one.")
    for task, text in result.get("bits_per_byte", {}).items():
        if text["documents"] < _ENOUGH:
            found.append(f"{task}: {text['documents']} documents are too few for the interval to mean much.")
    return found


COLUMNS = ("task", "as scored", "95 % interval", "completed only", "bounds", "chance", "n", "clusters", "detectable")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of scores as text, the columns as `COLUMNS`."""
    found = []
    for task, score in result.get("tasks", {}).items():
        if not score["n"]:
            continue
        low, high = score["interval"]
        found.append(
            (
                task,
                percent(score["as_scored"], 1),
                f"{percent(low, 1)} – {percent(high, 1)}",
                percent(score["completed"], 1) if "completed" in score else "–",
                f"{percent(score['worst'], 1)} – {percent(score['best'], 1)}",
                percent(score["chance"], 1) if "chance" in score else "–",
                str(score["n"]),
                str(score["clusters"]),
                f"± {percent(score['minimum_detectable_effect'], 1)}",
            )
        )
    return found


def text_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Bits per byte as text: text, bits per byte, interval, documents, bytes."""
    return [
        (
            name,
            f"{text['value']:.4f}",
            f"{text['interval'][0]:.4f} – {text['interval'][1]:.4f}",
            f"{text['documents']:,}",
            f"{text['bytes']:,}",
        )
        for name, text in result.get("bits_per_byte", {}).items()
    ]


TEXT_COLUMNS = ("text", "bits per byte", "95 % interval", "documents", "bytes")


def outcome_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How many samples had which outcome."""
    return [
        (task, *(str(score["outcomes"][outcome]) for outcome in OUTCOMES))
        for task, score in result.get("tasks", {}).items()
    ]


OUTCOME_COLUMNS = ("task", *(outcome.replace("_", " ") for outcome in OUTCOMES))


def examples(samples: Sequence[Sample]) -> list[Sample]:
    """The first few answers of every task that were not right."""
    found: list[Sample] = []
    for task in dict.fromkeys(sample.task for sample in samples):
        missed = [one for one in samples if one.task == task and one.outcome not in ("correct", "invalid_item")]
        found += missed[:_SHOWN]
    return found


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    marked = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    marked += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(marked)


def markdown(result: Mapping[str, Any], samples: Sequence[Sample], manifest: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    parts = [f"# Evaluation of {model_name(manifest)}"]
    found = warnings(result, samples)
    parts.append("\n".join(f"- {line}" for line in found) if found else "No warning.")
    for title, columns, lines in _tables(result):
        if lines:
            parts.append(f"## {title}\n\n{markdown_table(columns, lines)}")
    return "\n\n".join(parts) + "\n"


def _tables(result: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    return [
        ("Scores", COLUMNS, rows(result)),
        ("Bits per byte", TEXT_COLUMNS, text_rows(result)),
        ("Outcomes", OUTCOME_COLUMNS, outcome_rows(result)),
    ]


def html(folder: Path, result: Mapping[str, Any], samples: Sequence[Sample], manifest: Mapping[str, Any]) -> str:
    """The report as a page that asks nothing of the network."""
    found = warnings(result, samples)
    verdict = f"{len(found)} warnings, before any score." if found else "Nothing to warn of."
    body = [f"<h1><b>Evaluation</b> of {escape(model_name(manifest))}</h1>", f'<p class="verdict">{verdict}</p>']
    if found:
        body.append('<ul class="plain">' + "".join(f"<li>{escape(line)}</li>" for line in found) + "</ul>")
    scored = {task: score for task, score in result.get("tasks", {}).items() if score["n"]}
    if scored:
        body.append(f"<h2>Scores</h2>{_bars(scored)}{html_table(COLUMNS, rows(result))}")
        body.append(
            '<p class="note">As scored: all answers that came back. Bounds: had every answer that was cut off been '
            "wrong, or right. Detectable: the true distance from a fixed value that so many items show four times in "
            "five.</p>"
        )
    if lines := text_rows(result):
        body.append(f"<h2>Bits per byte</h2>{html_table(TEXT_COLUMNS, lines)}")
    if lines := outcome_rows(result):
        body.append(f"<h2>Outcomes</h2>{html_table(OUTCOME_COLUMNS, lines)}")
    if missed := examples(samples):
        body.append("<h2>What was not right</h2>" + "".join(map(_example, missed)))
    body.append("<h2>How it was made</h2>" + provenance(folder, manifest, {"Model": model_name(manifest)}))
    return page(f"Evaluation of {model_name(manifest)}", "\n".join(body))


def _bars(scored: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for task, score in scored.items():
        style = "missed" if score["outcomes"]["truncated"] > _FEW * score["n"] else "sparse"
        drawn = bar(score["as_scored"], score["interval"], full=1.0, style=style)
        number = percent(score["as_scored"], 1)
        lines.append(
            f'<tr><th>{escape(task)}</th><td class="picture">{drawn}</td><td class="number">{number}</td></tr>'
        )
    return f'<table class="measures"><tbody>{"".join(lines)}</tbody></table>'


def html_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in HTML, its first column a heading of the row."""
    head = "".join(f'<th class="{"number" if i else ""}">{escape(name)}</th>' for i, name in enumerate(columns))
    body = "".join(
        "<tr>"
        + f"<th>{escape(line[0])}</th>"
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in line[1:])
        + "</tr>"
        for line in lines
    )
    return (
        f'<div class="wide"><table class="measures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _example(sample: Sample) -> str:
    prompt = sample.prompt if isinstance(sample.prompt, str) else "\n".join(str(x["content"]) for x in sample.prompt)
    shown = prompt if len(prompt) <= _LONGEST else f"{prompt[: _LONGEST // 2]}\n[…]\n{prompt[-_LONGEST // 2 :]}"
    answer = (sample.answer if sample.answer is not None else f"[{sample.error}]")[:_LONGEST]
    head = f"{sample.task} · {sample.id} · {sample.outcome.replace('_', ' ')}"
    return (
        f'<figure><h3>{escape(head)}</h3><div class="text"><span class="prompt">{escape(shown)}</span>'
        f"{escape(answer)}</div><figcaption>right: {escape(str(sample.target)[:_LONGEST])}</figcaption></figure>"
    )
