import { ApiError, model, setKey, sleep } from "./api.js";
import { askKey, askSettings } from "./dialogs.js";
import { button, composing, el, fit } from "./dom.js";
import { drawList } from "./list.js";
import { Answer, question } from "./message.js";
import { SelectionView } from "./selection.js";
import * as store from "./store.js";
import { answer, body, history } from "./turn.js";

const at = (id) => document.getElementById(id);
const log = at("log");
const input = at("question");
const selection = new SelectionView();

let conversations = store.all();
let current = conversations[0] ?? store.fresh();
let served = null; // the server's model, once it has told
const runs = new Map(); // of a conversation's id: {abort, view, note}, while its answer is written
const problems = new Map(); // of a conversation's id: why its last answer failed

// --- Answers

function send(text) {
  if (runs.has(current.id) || !text.trim()) return;
  current.messages.push({ role: "user", content: text });
  current.title ||= text.trim().split("\n")[0].slice(0, 60);
  if (!conversations.includes(current)) conversations.unshift(current);
  run(current);
}

/** Drops everything from a place on, says something else there if given, and asks again. */
function again(conversation, place, text) {
  stop(conversation);
  conversation.messages.length = place;
  if (text !== undefined) conversation.messages.push({ role: "user", content: text });
  run(conversation);
}

function stop(conversation) {
  runs.get(conversation.id)?.abort.abort();
  runs.delete(conversation.id);
}

async function run(conversation) {
  const message = { role: "assistant", content: "" };
  const own = { abort: new AbortController(), view: null, note: null };
  problems.delete(conversation.id);
  runs.set(conversation.id, own);
  const asked = conversation.messages.slice();
  conversation.messages.push(message);
  conversation.updated = Date.now();
  keep(conversation);
  draw();
  log.scrollTop = log.scrollHeight;
  try {
    await connected(own.abort.signal, (note) => say(own, note));
    const request = body({ ...conversation, messages: asked }, served.id);
    await patiently(() => answer(request, message, own.abort.signal, () => grown(own)), own.abort.signal, (note) => say(own, note));
  } catch (error) {
    if (error.name !== "AbortError") problems.set(conversation.id, { error, since: Date.now() });
  }
  const empty = !message.content && !message.reasoning && !message.calls;
  const place = conversation.messages.indexOf(message);
  if (empty && place >= 0) conversation.messages.splice(place, 1);
  if (runs.get(conversation.id) === own) runs.delete(conversation.id);
  else if (place < 0) return; // another question took its place
  keep(conversation);
  if (conversation === current) draw();
  const problem = problems.get(conversation.id);
  at("announce").textContent = problem ? problem.error.message : empty ? "" : `Answer: ${message.content}`;
}

/** Tries again what the reader or a moment can put right: a missing key, a model that is loading. */
async function patiently(work, signal, tell) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (error.status === 503 && error.code === "loading") {
        tell("The model is loading; your message goes out as soon as it is there.");
        await sleep(error.wait || 1, signal);
        tell(null);
      } else if (!(await mended(error))) throw error;
    }
  }
}

async function mended(error) {
  if (!(error instanceof ApiError) || error.status !== 401) return false;
  const key = await askKey();
  if (key) setKey(key);
  return Boolean(key);
}

/** Knows the server's model, or throws. */
async function connected(signal, tell) {
  if (!served) {
    at("model").textContent = "connecting …";
    const loading = () => {
      at("model").textContent = "the model is loading …";
      tell("The model is loading; your message goes out as soon as it is there.");
    };
    try {
      served = await patiently(() => model(loading, signal), signal, tell);
    } catch (error) {
      at("model").textContent = "not connected";
      throw error;
    }
    tell(null);
  }
  at("model").textContent = at("model").title = served.id;
}

let frame = null;

/** Shows what has come, once a frame; the log follows unless the reader has scrolled up. */
function grown(own) {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    for (const { view } of runs.values()) view?.update();
    if (follow) log.scrollTop = log.scrollHeight;
  });
}

function say(own, note) {
  own.note = note;
  if (runs.get(current.id) === own) draw();
}

function keep(conversation) {
  if (!store.save(conversation)) at("keys").textContent = "The browser's storage is full: this conversation will be gone after a reload.";
  conversations.sort((a, b) => b.updated - a.updated);
}

// --- What is seen

function draw() {
  const own = runs.get(current.id);
  const { messages } = current;
  const nodes = messages.map((message, place) => {
    if (message.role === "user") return question(message, (text) => again(current, place, text));
    const on = { retry: () => again(current, place), tokens: () => tokens(place) };
    const view = new Answer(message, on, served?.max_model_len);
    if (own && place === messages.length - 1) {
      own.view = view;
      view.element.classList.add("growing");
      view.update();
    } else view.finish();
    return view.element;
  });
  if (own?.note) nodes.push(el("div", { className: "problem waiting", role: "status" }, el("p", {}, own.note)));
  if (!own && (problems.has(current.id) || messages.at(-1)?.role === "user")) nodes.push(problem());
  const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  log.replaceChildren(...(nodes.length ? nodes : [empty()]));
  if (follow) log.scrollTop = log.scrollHeight;
  at("title").textContent = current.title || "New conversation";
  document.title = current.title ? `${current.title} – inazuma` : "inazuma";
  at("send").hidden = Boolean(own);
  at("stop").hidden = !own;
  drawList(at("conversations"), conversations, current, { open, rename, remove });
}

function empty() {
  const icon = el("img", { src: "icon.svg", alt: "", width: 48, height: 48 });
  const told = el("p", {}, "Conversations stay in this browser, and go to this server alone.");
  return el("div", { className: "empty" }, icon, el("h2", {}, "Ask the model something"), told);
}

/** Why there is no answer, and a button to ask again: after the time that the server named, if it did. */
function problem() {
  const conversation = current;
  const { error, since } = problems.get(current.id) ?? { error: { message: "This message has no answer.", wait: 0 }, since: 0 };
  const partial = conversation.messages.at(-1)?.role !== "user";
  const self = button("Try again", () => again(conversation, conversation.messages.length - partial));
  const text = el("p", {}, error.status === 429 ? `The server has too much to do: ${error.message}` : error.message);
  const tick = () => {
    const left = Math.ceil(error.wait - (Date.now() - since) / 1000);
    self.disabled = left > 0;
    self.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) setTimeout(tick, 250);
  };
  tick();
  return el("div", { className: "problem" }, text, self);
}

function open(conversation) {
  current = conversation;
  draw();
  log.scrollTop = log.scrollHeight;
  side(false);
  input.focus();
}

function rename(conversation, title) {
  conversation.title = title;
  keep(conversation);
  draw();
}

function remove(conversation) {
  stop(conversation);
  store.remove(conversation.id);
  conversation.messages.length = 0;
  conversations = conversations.filter((one) => one !== conversation);
  if (conversation === current) current = conversations[0] ?? store.fresh();
  draw();
}

function tokens(place) {
  const system = current.settings.system ? [{ role: "system", content: current.settings.system }] : [];
  selection.open([...system, ...history(current.messages.slice(0, place + 1))], mended);
}

/** The list of conversations, where it is not always there. */
function side(shown) {
  at("side").classList.toggle("open", shown);
  at("scrim").hidden = !shown;
  at("open-side").setAttribute("aria-expanded", shown);
  if (shown) at("close-side").focus();
}

// --- What is done

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (runs.has(current.id) || !input.value.trim()) return;
  send(input.value);
  input.value = "";
  fit(input);
});
input.addEventListener("input", () => fit(input));
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || composing(event) || document.querySelector("dialog[open]")) return;
  if (at("side").classList.contains("open")) side(false);
  else stop(current);
});
at("stop").addEventListener("click", () => {
  stop(current);
  input.focus();
});
at("new").addEventListener("click", () => open(store.fresh()));
at("open-side").addEventListener("click", () => side(true));
for (const id of ["close-side", "scrim"]) at(id).addEventListener("click", () => side(false));
at("open-settings").addEventListener("click", async () => {
  const conversation = current;
  const settings = await askSettings(conversation.settings);
  if (!settings) return;
  conversation.settings = settings;
  store.saveSettings(settings);
  if (conversations.includes(conversation)) keep(conversation);
});
const themed = (name) => (at("theme").textContent = `Theme: ${name}`);
at("theme").addEventListener("click", () => themed(nextTheme()));
themed(document.documentElement.dataset.theme);

// What has come of an answer survives the page.
addEventListener("pagehide", () => conversations.filter((one) => runs.has(one.id)).forEach(keep));
addEventListener("storage", (event) => {
  const id = store.changed(event);
  if (!id || runs.has(id)) return;
  conversations = store.all().map((one) => conversations.find(({ id }) => id === one.id && runs.has(id)) ?? one);
  current = conversations.find((one) => one.id === current.id) ?? (current.id === id ? store.fresh() : current);
  draw();
});

for (const { messages } of conversations) {
  const last = messages.at(-1);
  if (last?.role === "assistant" && !last.content && !last.reasoning && !last.calls) messages.pop();
}
draw();
log.scrollTop = log.scrollHeight;
input.focus();
connected(undefined, () => {}).then(draw, () => {});
