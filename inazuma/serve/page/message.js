import { button, composing, copyButton, el, fit } from "./dom.js";
import { show } from "./markdown.js";

/** A question with its buttons. `resend(text)` is called with what it is changed to. */
export function question(message, resend) {
  const body = el("div", { className: "body" }, message.content);
  const self = article("user", "You");
  const draw = () => self.replaceChildren(self.firstChild, body, tools);
  const edit = button("Edit", () => self.replaceChildren(self.firstChild, editor(message.content, resend, () => (draw(), edit.focus()))), quiet);
  const tools = el("div", { className: "tools" }, edit, copyButton(() => message.content, quiet));
  draw();
  return self;
}

/** An answer; `update()` shows what has come since, `finish()` adds the buttons. */
export class Answer {
  /** `on`: {retry, tokens}, what two of the buttons do. `context`: the tokens that the model's context holds. */
  constructor(message, on, context) {
    Object.assign(this, { message, on, context });
    this.body = el("div", { className: "body" });
    this.element = article("assistant", "Answer");
    this.element.append(this.body);
    this.calls = [];
  }

  update() {
    const { reasoning, content, calls } = this.message;
    if (reasoning) this.#thought().textContent = reasoning;
    if (this.summary) this.summary.textContent = content || !this.element.classList.contains("growing") ? "Reasoning" : "Reasoning …";
    show(this.body, content);
    for (const [place, call] of (calls ?? []).entries()) {
      this.calls[place] ??= this.#call(call.function.name);
      this.calls[place].textContent = pretty(call.function.arguments);
    }
  }

  finish() {
    this.element.classList.remove("growing");
    this.update();
    const { message, on } = this;
    const stats = el("p", { className: "stats dim" }, words(message.stats, this.context));
    const tools = el("div", { className: "tools" }, copyButton(() => message.content, quiet), button("Retry", on.retry, quiet), button("Tokens", on.tokens, { ...quiet, title: "What each token reads" }), stats);
    this.element.querySelectorAll(":scope > :is(.tools, .note)").forEach((old) => old.remove());
    const note = { stop: "Stopped.", length: "The limit of tokens ended this answer.", lost: "Incomplete." }[message.ended];
    if (note) this.element.append(el("p", { className: "note dim" }, note));
    this.element.append(tools);
  }

  #thought() {
    if (!this.thought) {
      this.thought = el("div", { className: "thought" });
      this.summary = el("summary", {}, "Reasoning");
      this.body.before(el("details", {}, this.summary, this.thought));
    }
    return this.thought;
  }

  #call(name) {
    const code = el("code");
    this.element.append(el("details", { className: "call", open: true }, el("summary", {}, "Calls the tool ", el("code", {}, name)), el("pre", { tabIndex: 0 }, code)));
    return code;
  }
}

const quiet = { className: "quiet" };

function article(role, name) {
  return el("article", { className: `message ${role}` }, el("h2", { className: "hidden" }, name));
}

function editor(text, resend, cancel) {
  const area = el("textarea", { value: text, "aria-label": "Edit the message" });
  const send = () => area.value.trim() && resend(area.value);
  area.addEventListener("input", () => fit(area));
  area.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
  });
  requestAnimationFrame(() => (fit(area), area.focus()));
  const row = el("div", { className: "row" }, button("Cancel", cancel), button("Send from here", send, { className: "main" }));
  return el("div", { className: "edit" }, area, row);
}

/** Arguments are JSON once they are whole. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 1 ? 2 : value < 100 ? 1 : 0 });

/** What was measured here, in the browser: network included. */
function words(stats, context) {
  if (!stats) return "";
  const said = [];
  if (stats.speed) said.push(`${number(stats.speed)} tokens/s`);
  if (stats.first) said.push(`first token after ${number(stats.first)} s`);
  if (stats.total && context) said.push(`${number(stats.total)} of ${number(context)} tokens of context (${Math.ceil((stats.total / context) * 100)}%)`);
  return said.join(" · ");
}
