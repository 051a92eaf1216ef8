import { json } from "./api.js";
import { el } from "./dom.js";

const PAUSE = 120; // milliseconds that the pointer rests before the server is asked
const at = (id) => document.getElementById(id);
const layers = (count) => (count === 1 ? "1 layer" : `${count} layers`);

/** The view of a conversation as tokens, each with what the indexers select for it. */
export class SelectionView {
  constructor() {
    this.dialog = at("selection");
    this.box = at("tokens");
    this.picker = at("layer");
    this.line = at("selection-line");
    this.picker.addEventListener("change", () => this.#paint());
    this.dialog.addEventListener("close", () => this.#leave());
    this.box.addEventListener("pointermove", (event) => this.#point(event.target));
    this.box.addEventListener("focusin", (event) => this.#point(event.target));
    this.box.addEventListener("click", (event) => this.#hold(event.target));
    this.box.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Shows messages as the API takes them. `wrong(error)` may put a failure right: it says whether to try again. */
  async open(messages, wrong) {
    this.#leave();
    Object.assign(this, { wrong, tokens: [], answers: new Map(), asked: null, answer: null, held: false, abort: new AbortController() });
    this.box.replaceChildren();
    this.picker.replaceChildren(new Option("All together", "all"));
    at("legend").replaceChildren();
    this.line.textContent = "Reading the conversation …";
    this.dialog.showModal();
    const body = { messages, add_generation_prompt: false, return_token_strs: true };
    const told = await this.#ask("/tokenize", body, this.abort.signal);
    if (!told) return;
    this.ids = told.tokens;
    this.tokens = told.token_strs.map((text, place) => {
      const special = /^<.+>$|^\[[A-Z_]+\]$/.test(text);
      const properties = { className: `token${special ? " special" : ""}`, tabIndex: -1, role: "button", "aria-label": spoken(text) };
      const token = el("span", properties, text.replaceAll("\n", "↵\n"));
      token.place = place;
      return token;
    });
    this.box.append(...this.tokens);
    this.line.textContent = `${this.ids.length} tokens.`;
    this.#focus(this.tokens.length - 1);
  }

  #leave() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.asking?.abort();
  }

  async #ask(path, body, signal) {
    try {
      return await json(path, { body, signal });
    } catch (error) {
      if (error.name === "AbortError") return null;
      if (await this.wrong(error)) return this.#ask(path, body, signal);
      this.line.textContent = error.message;
      return null;
    }
  }

  #point(target) {
    const place = target.place;
    if (place === undefined) return;
    if (this.held) {
      if (place !== this.looked) this.#say(place);
      return;
    }
    if (place === this.asked) return;
    this.asking?.abort();
    clearTimeout(this.timer);
    this.asked = place;
    this.answer = this.answers.get(place) ?? null;
    this.#paint();
    if (!this.answer) this.timer = setTimeout(() => this.#select(place), PAUSE);
  }

  async #select(place) {
    this.asking = new AbortController();
    this.box.classList.add("waiting");
    // What comes after the token cannot change what it reads.
    const answer = await this.#ask("/inazuma/selection", { tokens: this.ids.slice(0, place + 1) }, this.asking.signal);
    if (answer) this.answers.set(place, answer);
    if (!answer || this.asked !== place) return;
    this.answer = answer;
    this.#layers(answer.layers);
    this.#paint();
  }

  #layers(read) {
    if (this.picker.length > 1) return;
    this.picker.append(...read.map((one, layer) => new Option(`Layer ${layer + 1}${one ? "" : " (dense)"}`, layer)));
  }

  /** How many layers read each token, of how many that select; of one layer if one is picked. */
  #counts() {
    const { layers: read, counts } = this.answer;
    if (this.picker.value === "all") return { counts, of: read.filter(Boolean).length };
    const one = read[this.picker.value];
    const picked = counts.map(() => 0);
    for (const place of one ?? []) picked[place] = 1;
    return { counts: picked, of: one ? 1 : 0 };
  }

  #paint() {
    const { asked, answer } = this;
    const { counts, of } = answer ? this.#counts() : { counts: [], of: 0 };
    this.box.classList.toggle("waiting", !answer);
    for (const [place, token] of this.tokens.entries()) {
      const count = counts[place] ?? 0;
      const kind = token.classList;
      kind.toggle("asked", place === asked);
      kind.toggle("later", asked !== null && place > asked);
      kind.toggle("read", count > 0 && place !== asked);
      if (count) token.style.setProperty("--share", count / of);
      if (count) token.setAttribute("aria-label", `${name(token)}, read by ${count} of ${layers(of)}`);
      else token.removeAttribute("aria-label");
      if (place === asked) token.setAttribute("aria-pressed", this.held);
      else token.removeAttribute("aria-pressed");
    }
    this.#legend(of);
    this.#say(asked);
  }

  #legend(of) {
    const steps = of <= 5 ? Array.from({ length: of }, (_, step) => step + 1) : [1, Math.round(of / 3), Math.round((2 * of) / 3), of];
    const entry = (count) => {
      const swatch = el("span", { className: "token read" });
      swatch.style.setProperty("--share", count / of);
      return el("li", {}, swatch, of === 1 ? "read" : `read by ${count} of ${layers(of)}`);
    };
    at("legend").replaceChildren(...steps.map(entry));
  }

  /** One line about the token asked for, and about another that is looked at while it is held. */
  #say(looked) {
    const { asked, answer } = this;
    this.looked = looked;
    if (asked === null) return;
    const self = `“${name(this.tokens[asked])}”, token ${asked + 1} of ${this.tokens.length}`;
    if (!answer) {
      this.line.textContent = `${self} …`;
      return;
    }
    const { counts, of } = this.#counts();
    if (!answer.layers.some(Boolean)) {
      this.line.textContent = `${self}, reads everything up to itself: this model is dense, there is no selection.`;
      return;
    }
    if (!of) {
      this.line.textContent = `${self}, reads everything up to itself: this layer is dense.`;
      return;
    }
    const read = counts.filter(Boolean).length;
    const dense = answer.layers.filter((one) => !one).length;
    const by = this.picker.value === "all" ? ` by at least one of ${layers(of)}` : "";
    let text = `${self}: ${read} of ${asked + 1} tokens up to itself are read${by}.`;
    if (dense && by) text += ` ${dense} more ${dense === 1 ? "is" : "are"} dense and ${dense === 1 ? "reads" : "read"} all.`;
    if (looked !== asked) text += ` “${name(this.tokens[looked])}”: read by ${counts[looked] ?? 0} of ${layers(of)}.`;
    this.line.textContent = text;
  }

  /** Holds a token, so that the pointer can look at others; the same again lets go. */
  #hold(target) {
    if (target.place === undefined) return;
    const again = this.held && target.place === this.asked;
    this.held = false;
    this.#point(target);
    this.held = !again;
    this.#focus(target.place);
    this.#paint();
  }

  #focus(place) {
    const token = this.tokens[place];
    if (!token) return;
    if (this.stop) this.stop.tabIndex = -1;
    this.stop = token;
    token.tabIndex = 0;
    token.focus();
  }

  #key(event) {
    const place = event.target.place;
    const last = this.tokens.length - 1;
    const to = {
      ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: last,
      ArrowUp: this.#line(place, -1), ArrowDown: this.#line(place, 1),
    }[event.key];
    if (event.key === "Enter" || event.key === " ") this.#hold(event.target);
    else if (event.key === "Escape" && this.held) {
      this.held = false;
      this.#paint();
    } else if (to !== undefined) this.#focus(Math.max(0, Math.min(last, to)));
    else return;
    event.preventDefault();
  }

  /** The token above or below. */
  #line(place, step) {
    const box = (token) => token.getClientRects()[0];
    const own = box(this.tokens[place]);
    let next = place;
    while (this.tokens[next + step]) {
      next += step;
      const { left, top } = box(this.tokens[next]);
      if (Math.abs(top - own.top) > own.height && (step > 0 ? left >= own.left : left <= own.left)) return next;
      if (Math.abs(top - own.top) > 2.5 * own.height) return next;
    }
    return next;
  }
}

const name = (token) => token.textContent.replaceAll("↵\n", "↵").trim() || "space";

/** What a token is called where it cannot be seen: blank ones have no text to be called by. */
function spoken(text) {
  if (text.trim()) return text;
  if (text.includes("\n")) return "line break";
  return text ? "space" : "no text";
}
