// Creates DOM elements; content of records is always text, never markup.

export const $ = (id) => document.getElementById(id);

// el("button", {class: "chip", onclick: f}, "text", child)
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// What stands in place of results. `words` are a headline, a sentence and a command, or null for nothing.
export function empty(words, alert = false) {
  const [head, text, code] = words ?? [];
  say(words && [el("img", { src: "/page/icon.svg", alt: "" }), el("h2", {}, head), el("p", {}, text), ...(code ? [el("code", {}, code)] : [])], alert);
}

export function say(nodes, alert = false) {
  $("empty").hidden = nodes === null;
  $("empty").setAttribute("role", alert ? "alert" : "status");
  $("empty").replaceChildren(...(nodes ?? []));
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(path, className = "") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  if (className) svg.setAttribute("class", className);
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const PLAY = "M8 5.5v13l10.5-6.5z";
export const PAUSE = "M7 5h3.6v14H7zM13.4 5H17v14h-3.6z";
export const WAVE = "M2 12v.01M5 9v6M8 5v14M11 8.5v7M14 3.5v17M17 8v8M20 10.5v3M22.5 12v.01";
export const FILM = "M4 5h16v14H4zM8 5v14M16 5v14M4 9.7h4M4 14.3h4M16 9.7h4M16 14.3h4";
export const NEAR = "M12 4v3M12 17v3M4 12h3M17 12h3M12 9.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5z";

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const NUMBERS = new Intl.NumberFormat("en");
export const number = (value) => NUMBERS.format(value);

const LAST = 8.64e15; // ms: the last time that a Date can hold
export const IMPOSSIBLE = "impossible time";

// A time stamp in ms as ISO 8601; null for an invalid one.
export const iso = (ts) => (Number.isFinite(ts) && Math.abs(ts) <= LAST ? new Date(ts).toISOString() : null);

// A time stamp in ms as "12 s ago".
export function ago(ts, now = Date.now()) {
  if (iso(ts) === null) return IMPOSSIBLE;
  const seconds = Math.max(0, (now - ts) / 1000);
  if (seconds < 2) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h ago`;
  return iso(ts).slice(0, 10);
}
