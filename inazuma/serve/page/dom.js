/** An element; `properties` are set as properties, those with a dash or of an unknown name as attributes. Children are
 * nodes and strings: text never becomes markup. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A button that says what it does, also to those who do not see it. */
export function button(label, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, label);
}

/** Whether a key belongs to an input method that is composing text. Safari ends the composition before the Enter that
 * ended it and tells only by the key code. */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** A textarea as high as its text; the style sheet sets the limit. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** A button that copies what `text` returns, and says so for a moment. */
export function copyButton(text, properties = {}) {
  const self = button(
    "Copy",
    async () => {
      self.textContent = (await copied(text())) ? "Copied" : "Not copied";
      setTimeout(() => (self.textContent = "Copy"), 1500);
    },
    properties,
  );
  return self;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without HTTPS other machines' pages have no clipboard; selecting and copying still works.
    const area = el("textarea", { value: text, className: "hidden", "aria-hidden": "true" });
    const focus = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focus?.focus();
    return done;
  }
}
