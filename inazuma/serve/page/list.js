import { button, composing, el } from "./dom.js";

const small = (label) => ({ className: "quiet small", title: label, "aria-label": label });

/** Fills the list of conversations. `on`: {open(one), rename(one, title), remove(one)}. */
export function drawList(list, conversations, current, on) {
  list.replaceChildren(...conversations.map((one) => entry(one, one.id === current.id, on)));
}

function entry(one, isCurrent, on) {
  const title = one.title || "Untitled";
  const open = button(title, () => on.open(one), { className: "quiet", title });
  if (isCurrent) open.setAttribute("aria-current", "true");
  const item = el("li", { className: isCurrent ? "current" : "" });
  const rename = button("✎", () => item.replaceChildren(field(one, on)), small(`Rename ${title}`));
  const remove = button("✕", () => confirm(`Delete “${title}”? This cannot be undone.`) && on.remove(one), small(`Delete ${title}`));
  item.append(open, rename, remove);
  return item;
}

function field(one, on) {
  const input = el("input", { value: one.title, "aria-label": "Title", maxLength: 100 });
  let done = false;
  const end = (title) => {
    if (done) return;
    done = true;
    on.rename(one, title.trim() || one.title);
  };
  input.addEventListener("blur", () => end(input.value));
  input.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter") end(input.value);
    if (event.key === "Escape") {
      event.stopPropagation();
      end(one.title);
    }
  });
  requestAnimationFrame(() => input.select());
  return input;
}
