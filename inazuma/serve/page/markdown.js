import { copyButton, el } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/;
const DELIMITER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Shows Markdown in an element. Blocks that are as they were stay the nodes that they are, so that a growing answer
 * costs little and what the reader selected in it stays selected. */
export function show(container, text) {
  const wanted = blocks(text);
  let same = 0;
  while (same < wanted.length && container.children[same]?.source === wanted[same].source) same += 1;
  while (container.children.length > same) container.lastElementChild.remove();
  for (const block of wanted.slice(same)) {
    const node = draw(block);
    node.source = block.source;
    container.append(node);
  }
}

/** The blocks of a text: {kind, lines, source, ...}. */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = read(lines, at);
    block.source = lines.slice(at, block.end).join("\n");
    found.push(block);
    at = block.end;
  }
  return found;
}

function read(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return { kind: "heading", level: heading[1].length, text: heading[2] ?? "", end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) {
    const end = until(lines, at + 1, (next) => !next.trim() || (!QUOTE.test(next) && starts(next)));
    return { kind: "quote", text: lines.slice(at, end).map((one) => one.replace(QUOTE, "")).join("\n"), end };
  }
  if (ITEM.test(line)) return list(lines, at);
  if (isTable(lines, at)) {
    const end = until(lines, at + 2, (next) => !next.trim() || starts(next));
    return { kind: "table", rows: [line, ...lines.slice(at + 2, end)].map(cells), align: cells(lines[at + 1]), end };
  }
  const end = until(lines, at + 1, (next, place) => !next.trim() || starts(next) || isTable(lines, place));
  return { kind: "paragraph", text: lines.slice(at, end).map((one) => one.trimStart()).join("\n"), end };
}

/** Whether a line begins a block even right after a paragraph. */
const starts = (line) => {
  const item = ITEM.exec(line);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || Boolean(item && item[4]);
};

const isTable = (lines, at) =>
  lines[at].includes("|") && DELIMITER.test(lines[at + 1] ?? "") && cells(lines[at]).length === cells(lines[at + 1]).length;

function until(lines, at, end) {
  while (at < lines.length && !end(lines[at], at)) at += 1;
  return at;
}

function code(lines, at, [, indent, mark, language]) {
  const closing = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  const end = until(lines, at + 1, closing);
  const inside = lines.slice(at + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent.length}}`), ""));
  return { kind: "code", text: inside.join("\n"), language: language.trim().split(/\s/)[0], end: Math.min(end + 1, lines.length) };
}

/** Items go on over indented lines, and over empty ones that an indented line or another item follows. */
function list(lines, at) {
  const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
  const items = [];
  const first = parseInt(ITEM.exec(lines[at])[2], 10);
  let width = 0;
  let loose = false;
  for (; at < lines.length; at += 1) {
    const line = lines[at];
    const item = ITEM.exec(line);
    if (!line.trim()) {
      const next = lines.slice(at).find((one) => one.trim());
      const more = next && (next.startsWith(" ".repeat(width)) || (ITEM.test(next) && /\d/.test(ITEM.exec(next)[2]) === ordered));
      if (!more) break;
      loose = loose || Boolean(ITEM.exec(next));
      items.at(-1).push("");
    } else if (items.length && line.startsWith(" ".repeat(width))) {
      items.at(-1).push(line.slice(width));
    } else if (item && !RULE.test(line) && /\d/.test(item[2]) === ordered) {
      width = item[1].length + item[2].length + Math.min(item[3].length || 1, 4);
      items.push([item[4]]);
    } else if (!starts(line) && items.at(-1).at(-1)) {
      items.at(-1).push(line.trimStart());
    } else break;
  }
  return { kind: "list", ordered, first, loose, items: items.map((item) => item.join("\n")), end: at };
}

const cells = (line) =>
  line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function draw(block, depth = 0) {
  // So deep nobody nests; what does would exhaust the stack.
  if (depth > 16) return el("p", {}, block.source);
  switch (block.kind) {
    case "heading":
      // The page's own headings are the first two levels.
      return el(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text));
    case "rule":
      return el("hr");
    case "code":
      return drawCode(block);
    case "quote":
      return el("blockquote", {}, ...blocks(block.text).map((one) => draw(one, depth + 1)));
    case "list":
      return drawList(block, depth);
    case "table":
      return drawTable(block);
    default:
      return el("p", {}, ...inline(block.text));
  }
}

function drawCode({ text, language }) {
  const head = el("div", { className: "code-head" }, el("span", {}, language || "text"), copyButton(() => text, { "aria-label": "Copy code" }));
  // A wide block is scrolled, with the keyboard too.
  return el("div", { className: "code" }, head, el("pre", { tabIndex: 0 }, el("code", {}, text)));
}

function drawList({ ordered, first, loose, items }, depth) {
  const content = (one, place) => (one.kind === "paragraph" && !loose && !place ? inline(one.text) : [draw(one, depth + 1)]);
  const drawn = items.map((item) => el("li", {}, ...blocks(item).flatMap(content)));
  return ordered ? el("ol", { start: first }, ...drawn) : el("ul", {}, ...drawn);
}

function drawTable({ rows: [head, ...rows], align }) {
  const aligned = align.map((mark) => (/^:-+:$/.test(mark) ? "center" : /-:$/.test(mark) ? "right" : "left"));
  const row = (values, tag) =>
    el("tr", {}, ...aligned.map((side, place) => el(tag, { className: side }, ...inline(values[place] ?? ""))));
  const table = el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, ...rows.map((values) => row(values, "td"))));
  return el("div", { className: "table", tabIndex: 0, role: "group", "aria-label": "Table" }, table);
}
