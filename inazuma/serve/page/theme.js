// Not a module: it runs before the page is drawn, which would otherwise flash in the wrong colours.
const THEME = "inazuma.theme";
document.documentElement.dataset.theme = localStorage.getItem(THEME) ?? "auto";

/** From what the system says to light, to dark, and back. */
function nextTheme() {
  const themes = ["auto", "light", "dark"];
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3];
  document.documentElement.dataset.theme = next;
  localStorage.setItem(THEME, next);
  return next;
}
