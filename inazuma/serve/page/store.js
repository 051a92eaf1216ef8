/* Conversations in the browser's localStorage, each under its own key, so that two tabs do not write over each other.
 *
 * A conversation is {id, title, updated, settings, messages}; a message {role, content} and, of an answer, also
 * {reasoning, calls, stats, stopped}. */

const PREFIX = "inazuma.conversation.";
const SETTINGS = "inazuma.settings";

export const NO_SETTINGS = { system: "", temperature: null, top_p: null, max_tokens: null, seed: null };

/** Every conversation, the last used first. */
export function all() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => read(key, null))
    .filter((found) => found && Array.isArray(found.messages))
    .sort((a, b) => b.updated - a.updated);
}

/** A conversation that is not stored before something is said in it. Its settings are those last chosen. */
export function fresh() {
  // crypto.randomUUID is missing where the page came without HTTPS from another machine.
  const id = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("");
  return { id, title: "", updated: 0, settings: { ...NO_SETTINGS, ...read(SETTINGS, {}) }, messages: [] };
}

/** Whether it could be stored: the browser keeps a few megabytes. */
export function save(conversation) {
  return write(PREFIX + conversation.id, conversation);
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

/** The id of the conversation that another tab changed, or null. */
export const changed = (event) => (event.key?.startsWith(PREFIX) ? event.key.slice(PREFIX.length) : null);

/** Remembers settings for new conversations. */
export const saveSettings = (settings) => write(SETTINGS, settings);

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
