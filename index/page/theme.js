// Colour theme: the system's, light or dark; remembered. Not a module, so that it runs before the
// first paint.
(() => {
  const KEY = "braid-theme";
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  function remembered() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is refused
    }
  }

  let choice = remembered() in NEXT ? remembered() : "system";

  function apply() {
    root.dataset.theme = choice === "system" ? (dark.matches ? "dark" : "light") : choice;
    root.dataset.choice = choice;
    const button = document.getElementById("theme");
    if (button) {
      const text = `Colours: ${choice === "system" ? "as the system" : choice}`;
      button.setAttribute("aria-label", `${text}; change`);
      button.title = `${text}. Press for ${NEXT[choice] === "system" ? "the system's" : NEXT[choice]}.`;
    }
    dispatchEvent(new Event("themechange"));
  }

  dark.addEventListener("change", apply);
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").onclick = () => {
      choice = NEXT[choice];
      try {
        localStorage.setItem(KEY, choice);
      } catch {
        // It lasts as long as this page.
      }
      apply();
    };
  });
})();
