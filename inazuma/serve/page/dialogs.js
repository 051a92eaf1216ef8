/** The form's fields when it is sent, or null when the dialog is closed otherwise. */
function ask(id, fill) {
  const dialog = document.getElementById(id);
  const form = dialog.querySelector("form");
  form.reset();
  fill?.(form.elements);
  return new Promise((resolve) => {
    let sent = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      sent = form.elements;
      dialog.close();
    };
    dialog.addEventListener("close", () => resolve(sent), { once: true });
    dialog.showModal();
  });
}

export async function askSettings(settings) {
  const names = Object.keys(settings);
  const sent = await ask("settings", (fields) => names.forEach((name) => (fields[name].value = settings[name] ?? "")));
  if (!sent) return null;
  const value = (name) => (name === "system" ? sent.system.value.trim() : sent[name].value === "" ? null : Number(sent[name].value));
  return Object.fromEntries(names.map((name) => [name, value(name)]));
}

let asking = null;

/** An API key or null; asked for once, however many requests need it. */
export function askKey() {
  asking ??= ask("key").then((sent) => sent && sent.key.value).finally(() => (asking = null));
  return asking;
}

for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
