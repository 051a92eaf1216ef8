"""Where figures stand: the words around them in each document, and the numbers in it that no claim covers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from inazuma.errors import UserError
from inazuma.runs.claims_file import Claim, Claims

NUMBER = r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?"
_FIGURE = re.compile(r"\{([A-Za-z][\w.-]*)\}")
# A digit after a letter, a hyphen or a dot belongs to a name: int8, DeepSeek-V3.2, x86-64.
_LOOSE = re.compile(r"(?<![A-Za-z0-9_./-])\d+(?:,\d{3})*(?:\.\d+)*")
_NO_PROSE = re.compile(r"```.*?```|`[^`\n]*`|<!--.*?-->|(?<=\])\([^)\s]*\)|https?://\S+", re.DOTALL)


def pattern(words: str, figures: Mapping[str, str] | None = None) -> re.Pattern[str]:
    """Finds `words` with their figures, however lines are broken: each figure as stated or, without any, any number."""
    pieces = []
    for place, piece in enumerate(_FIGURE.split(words)):
        if place % 2 == 0:
            pieces.append(r"\s+".join(map(re.escape, re.split(r"\s+", piece))))
        elif figures is None:
            pieces.append(f"(?P<f{place // 2}>{NUMBER})")
        elif piece in figures:
            pieces.append(re.escape(figures[piece]))
        else:
            raise UserError(f"{words!r}: the claim has no figure {piece!r}")
    # Not in the middle of a number: "5 ms" does not stand in "35 ms".
    before = r"(?<![\d.,])" if words[:1] == "{" or words[:1].isdigit() else ""
    after = r"(?!\d|[.,]\d)" if words[-1:] == "}" or words[-1:].isdigit() else ""
    return re.compile(before + "".join(pieces) + after)


def figures_in(words: str) -> list[str]:
    """The names of the figures that `words` hold, in order."""
    return _FIGURE.findall(words)


def misplaced(claim: Claim, folder: Path) -> Iterator[str]:
    """What is not as the claim says it stands: a line for each of its places that does not show its figures once."""
    stated = {name: figure["value"] for name, figure in claim.figures.items()}
    for document, places in claim.stands.items():
        text = read_document(folder / document)
        for words in places:
            found = len(pattern(words, stated).findall(text))
            if found == 1:
                continue
            said = _FIGURE.sub(lambda figure: stated[figure[1]], words)
            others = [match[0] for match in pattern(words).finditer(text)]
            if found:
                yield f"{document}: says {said!r} {found} times; quote more of the words around it"
            elif len(others) == 1:
                yield f"{document}: says {' '.join(others[0].split())!r}, the claim says {said!r}"
            else:
                yield f"{document}: does not say {said!r}"


def uncovered(claims: Claims, folder: Path) -> Iterator[str]:
    """The numbers in the documents that stand in no claim's words and are not listed as not measured.

    What is listed as not measured and stands round no such number is told too: it would hide the next one.
    """
    idle = dict.fromkeys(claims.not_measured)
    for document in documents(claims, folder):
        text = read_document(folder / document)
        prose = _NO_PROSE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        listed = [(*match.span(), words) for words in claims.not_measured for match in pattern(words).finditer(text)]
        spans = []
        for claim in claims.claims:
            stated = {name: figure["value"] for name, figure in claim.figures.items()}
            for words in claim.stands.get(document, ()):
                spans += [match.span() for match in pattern(words, stated).finditer(text)]
        for number in _LOOSE.finditer(prose):
            if any(start <= number.start() < end for start, end in spans):
                continue
            around = [words for start, end, words in listed if start <= number.start() < end]
            for words in around:
                idle.pop(words, None)
            if not around:
                line = text.count("\n", 0, number.start()) + 1
                said = text.splitlines()[line - 1].strip()
                yield f"{document}:{line}: no claim covers {number[0]!r} in {said[:100]!r}"
    for words in idle:
        yield f"not_measured: {words!r} stands round no number that needs it"


def documents(claims: Claims, folder: Path) -> list[str]:
    """The documents whose numbers must all be accounted for, as paths below `folder`."""
    found: list[str] = []
    for entry in claims.documents:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(entry))
        if not names:
            raise UserError(f"{entry}: no such document")
        found += [name for name in names if name not in claims.left_out]
    return list(dict.fromkeys(found))


def read_document(path: Path) -> str:
    """A document's text; a `UserError` where it is missing."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such document") from None
