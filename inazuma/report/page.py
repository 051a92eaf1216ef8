"""A report's page: one HTML file that asks nothing of the network, in light and dark, from a phone to a desktop."""

from __future__ import annotations

import html
from string import Template

# Control characters are not allowed in HTML and are shown by their pictures; a lone surrogate cannot be encoded, and
# what turns the direction of text could make a reader see other text than the model wrote.
_SHOWN = {code: 0x2400 + code for code in range(32) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_SHOWN |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_SHOWN |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def escape(text: str) -> str:
    """Any text as HTML, in an element or in a quoted attribute, with nothing invisible left in it."""
    return html.escape(text.translate(_SHOWN))


def page(title: str, body: str) -> str:
    """The whole document around `body` (HTML); `title` is plain text."""
    return _PAGE.substitute(title=escape(title), style=STYLE, body=body)


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --raised: #f3f1ea; --line: #dcd8cc; --ink: #1c1d21; --muted: #5c5f68;
  --sparse: #3546c4; --dense: #6b6e76; --other: #8c8880; --missed: #b04a0c; --band: #00000009;
  --picked-tint: #3546c42b; --missed-tint: #b04a0c24;
  --layer-0: #2b3fae; --layer-1: #6540bd; --layer-2: #9437a8; --layer-3: #b62f80;
  --layer-4: #c43c50; --layer-5: #bd5526; --layer-6: #97700c; --layer-7: #557a1c;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131418; --raised: #1c1e24; --line: #34373f; --ink: #e9e7e1; --muted: #a3a6ae;
    --sparse: #98a8ff; --dense: #a3a6ae; --other: #6c6f78; --missed: #f59a5b; --band: #ffffff0a;
    --picked-tint: #98a8ff38; --missed-tint: #f59a5b33;
    --layer-0: #8ea2ff; --layer-1: #b59aff; --layer-2: #d890f0; --layer-3: #f28dc6;
    --layer-4: #ff919b; --layer-5: #fb9e6d; --layer-6: #e0b44c; --layer-7: #a9cf68;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 400 1.0625rem/1.6 var(--sans); }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1, h2 { font-family: var(--serif); font-weight: 500; line-height: 1.2; text-wrap: balance; }
h1 { font-size: 1.125rem; letter-spacing: .02em; margin: 0 0 2rem; color: var(--muted); }
h1 b { color: var(--ink); font-weight: 500; font-size: 1.75rem; letter-spacing: 0; }
h1 [lang=ja] { font-family: "Hiragino Mincho ProN", "Yu Mincho", "Noto Serif CJK JP", "Noto Serif JP", serif;
  font-size: 1.75rem; color: var(--ink); margin-right: .25em; }
h2 { font-size: 1.625rem; margin: 4.5rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 2.25rem 0 .25rem; }
p, ul.plain { max-width: 40rem; margin: .5rem 0 1rem; }
ul.plain { padding-left: 1.2em; }
ul.plain li { margin: .35rem 0; }
.verdict { font: 400 1.5rem/1.4 var(--serif); max-width: 46rem; margin: 0 0 1rem; text-wrap: pretty; }
.note, figcaption, .legend, .facts dt { color: var(--muted); font-size: .875rem; line-height: 1.5; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1.25rem 1rem;
  margin: 2rem 0; padding: 1.25rem 0; border: solid var(--line); border-width: 1px 0; }
.facts dd { margin: 0; font-size: 1.125rem; font-variant-numeric: tabular-nums; }
figure { margin: 1.75rem 0; }
figcaption { margin-top: .5rem; max-width: 44rem; }
figure > h3 { margin-top: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2.5rem; }
svg { display: block; overflow: visible; }
svg text { font: 400 12px var(--sans); fill: var(--muted); font-variant-numeric: tabular-nums; }
.plot { padding: .5rem 1rem 2.75rem 3.25rem; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--muted); stroke-width: 1; }
.band { fill: var(--band); }
.curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.ceiling { color: var(--ink); stroke-dasharray: 6 4; } .rival { color: var(--ink); }
.dot { fill: currentColor; stroke: var(--paper); stroke-width: 1.5; }
.ring { fill: var(--paper); stroke: currentColor; stroke-width: 2; }
.span { stroke: currentColor; stroke-width: 2; }
.bar { fill: currentColor; }
.whisker { stroke: var(--ink); stroke-width: 1.5; }
.sparse { color: var(--sparse); } .dense { color: var(--dense); } .baseline, .other { color: var(--other); }
.recent { color: var(--muted); } .picked { color: var(--sparse); } .missed { color: var(--missed); }
.ahead { fill: var(--band); }
.layer-0 { color: var(--layer-0); } .layer-1 { color: var(--layer-1); } .layer-2 { color: var(--layer-2); }
.layer-3 { color: var(--layer-3); } .layer-4 { color: var(--layer-4); } .layer-5 { color: var(--layer-5); }
.layer-6 { color: var(--layer-6); } .layer-7 { color: var(--layer-7); }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; list-style: none; padding: 0; margin: .35rem 0; }
.legend li::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .45em;
  border-radius: 2px; background: var(--swatch); vertical-align: -.06em; }
.legend li span { color: var(--muted); }
.legend li { --swatch: currentColor; }
.wide { overflow-x: auto; }
.measures { width: 100%; border-collapse: collapse; font-size: .9375rem; line-height: 1.35; margin: .5rem 0; }
.measures th { text-align: left; font-weight: 400; padding: .3rem .75rem .3rem 0; white-space: nowrap; }
.measures td { padding: .3rem 0; }
.measures td.picture { width: 100%; padding-right: 1rem; }
.measures td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; padding-left: .5rem; }
.measures thead th { color: var(--muted); font-size: .8125rem; white-space: normal; vertical-align: bottom; }
.measures thead th.number { text-align: right; padding: .3rem 0 .3rem .5rem; }
.measures tbody tr { border-top: 1px solid var(--line); }
.measures small { display: block; color: var(--muted); font-size: .8125rem; }
.text, .code { font: 400 .8125rem/1.65 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4;
  background: var(--raised); border-radius: 6px; padding: .8rem 1rem; margin: .5rem 0; max-width: none; }
.text i, .text b { font-style: normal; font-weight: 400; border-radius: 2px; }
.text .p { background: var(--picked-tint); box-shadow: inset 0 -2px var(--sparse); }
.text .m { background: var(--missed-tint); text-decoration: underline dashed var(--missed) 2px;
  text-underline-offset: 3px; }
.text .q { outline: 2px solid var(--ink); outline-offset: 1px; font-weight: 700; }
.text .next { color: var(--muted); }
.text .prompt { font-weight: 700; color: var(--sparse); }
.query { margin: 2.5rem 0 3.5rem; }
.heaviest { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .25rem 1.25rem;
  list-style: none; padding: 0; margin: 0; }
.heaviest .text { margin: .15rem 0 .6rem; padding: .55rem .8rem; }
.made { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 1rem 0; font-size: .9375rem; }
.made dt { color: var(--muted); } .made dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  main { padding: 2rem 1rem 4rem; }
  .verdict { font-size: 1.25rem; }
  h2 { font-size: 1.375rem; margin-top: 3.5rem; }
  .plot { padding: .5rem .5rem 2.75rem 3.25rem; }
  .made { grid-template-columns: 1fr; gap: 0; } .made dd { margin-bottom: .6rem; }
}
"""

# The policy makes "no network" a rule that the browser keeps; the icon is inline so that none is asked for.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Cpath fill='%233546c4' d='M9 0 2 9h5l-1 7 8-10H8z'/%3E%3C/svg%3E">
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")
