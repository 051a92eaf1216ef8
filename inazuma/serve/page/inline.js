import { el } from "./dom.js";

/** Time grows with the text and not with its square, whatever a model writes: a run of marks is tried where it begins,
 *  what a mark opens ends within 2,000 characters, and a word that goes on is no beginning. */
const PATTERNS = [
  ["code", /(?<!`)(`{1,20})(?!`)([\s\S]{0,2000}?[^`])\1(?!`)/y],
  ["escape", /\\([!-/:-@[-`{-~])/y],
  ["link", /!?\[((?:[^[\]\\]|\\.|\[[^[\]]{0,2000}\]){0,2000})\]\(\s{0,9}<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s{1,9}"[^"]{0,2000}")?\s{0,9}\)/y],
  ["auto", /(?<![\p{L}\p{N}])<?(https?:\/\/[^\s<>"`]{0,4000}[^\s<>"`.,:;!?'()[\]*_~、。」）])>?/uy],
  ["strong", /([*_])\1(?=\S)([\s\S]{0,2000}?\S)\1\1(?!\1)/y],
  ["strike", /(~~)(?=\S)([\s\S]{0,2000}?\S)\1/y],
  ["em", /(\*|_)(?=[^\s*_])([\s\S]{0,2000}?[^\s*_])\1(?!\1)/y],
  ["br", /(?:(?<! ) {2,}|\\)\n/y],
];
const STARTS = /[`\\![<h*_~ ]/g;
const WORD = /[\p{L}\p{N}]/u;

/** Nodes of Markdown inside a block. What is not understood stays text. */
export function inline(text, depth = 0) {
  const nodes = [];
  let plain = 0;
  let at = 0;
  while (at < text.length) {
    STARTS.lastIndex = at;
    const start = STARTS.exec(text);
    if (!start) break;
    at = start.index;
    const found = match(text, at, depth);
    if (!found) {
      at += 1;
      continue;
    }
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(found.node);
    plain = at = found.end;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

function match(text, at, depth) {
  for (const [kind, pattern] of PATTERNS) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    const node = found && make(kind, found, text, depth);
    if (node) return { node, end: at + found[0].length };
  }
  return null;
}

function make(kind, found, text, depth) {
  const inner = (part) => (depth < 8 ? inline(part, depth + 1) : [part]);
  switch (kind) {
    case "code":
      return el("code", {}, found[2].replace(/^ (.*\S.*) $/s, "$1"));
    case "escape":
      return found[1];
    case "link":
      return link(found[2], inner(found[1]));
    case "auto":
      return link(found[1], [found[1]]);
    case "br":
      return el("br");
    default:
      // snake_case is no emphasis
      if (found[1].startsWith("_") && (WORD.test(text[found.index - 1] ?? "") || WORD.test(after(found, text)))) return null;
      return el({ strong: "strong", strike: "s", em: "em" }[kind], {}, ...inner(found[2]));
  }
}

const after = (found, text) => text[found.index + found[0].length] ?? "";

/** A link to the web; any other scheme stays text. Pictures become links: showing them would ask other servers. */
function link(address, content) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:"].includes(url.protocol)) return null;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...content);
}
