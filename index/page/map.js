// Map of the space: points on a canvas, coloured by a field, hits ringed.

import { call } from "./api.js";
import { well } from "./cards.js";
import { $, ago, calm, el } from "./dom.js";
import { has } from "./modalities.js";
import { prepareView } from "./view.js";

// Twelve colours that differ on light and dark backgrounds; further choices repeat them, paler.
const COLOURS = ["#5b6bf0", "#1f9d8a", "#d9822b", "#d1477a", "#7fa62c", "#8a5bd6", "#2f93d1", "#b8893b", "#c2554d", "#3fae5a", "#a05c96", "#6b8794"];
const NEAR_PX = 12;
const PULSE_MS = 2200;
const EVERY_MS = 5000;
const ALL = { kind: "none", name: "", choices: [], of: [] };

let drawing = { revision: 0, ids: [], x: [], y: [], ts: [], version: [], fields: [] };
let added = new Map(); // id -> record, arrived since the drawing was made
let lastHits = []; // the records of the last search, best first
let hits = new Map(); // those of them that have a place: id -> {x, y, rank, record}
let pulses = [];
let colourBy = ALL;
let byHand = false; // whether somebody has chosen what to colour by
const painted = new Map(); // field -> choice -> the number of its colour, which it keeps
let only = null; // the one choice that the legend shows
let hovered = null;
let lit = null;
let places = new Map();
let view;
let open = () => {};
let onFields = () => {};
let loadedAt = 0;

export function prepareMap({ opened, fieldsFound }) {
  [open, onFields] = [opened, fieldsFound];
  view = prepareView($("map"), $("canvas-box"), { draw, hover, press });
  $("zoom-in").onclick = () => view.zoom(1.5);
  $("zoom-out").onclick = () => view.zoom(1 / 1.5);
  $("zoom-fit").onclick = () => view.fit();
  $("colour").onchange = (event) => {
    byHand = true;
    colour(drawing.fields[event.target.value] ?? ALL);
  };
  addEventListener("themechange", () => view.redraw());
}

export const mapShown = () => $("columns").classList.contains("mapped");

function paint(choice) {
  const field = `${colourBy.kind} ${colourBy.name}`;
  if (!painted.has(field)) painted.set(field, new Map());
  const colours = painted.get(field);
  if (!colours.has(choice)) colours.set(choice, colours.size);
  return colours.get(choice);
}

const pale = (choice) => choice >= 0 && paint(colourBy.choices[choice]) >= COLOURS.length;
const colourOf = (choice) => COLOURS[paint(colourBy.choices[choice]) % COLOURS.length];

// Fetch the drawing if there is a newer one, at most every few seconds.
export async function loadMap({ now = false } = {}) {
  if (!now && performance.now() - loadedAt < EVERY_MS) return;
  loadedAt = performance.now();
  const newest = await call(`/v1/map?revision=${drawing.revision}`);
  if (newest === null) return;
  drawing = newest;
  places = new Map(drawing.ids.map((id, place) => [id, place]));
  for (const id of added.keys()) if (places.has(id)) added.delete(id);
  view.setFrame(frameOf(drawing.x, drawing.y));
  $("nomap").hidden = drawing.ids.length > 0;
  choices();
  onFields(drawing.fields);
  if (lastHits.length) await showHits(lastHits);
  view.redraw();
}

// The bounds of all points but the outermost.
function frameOf(x, y) {
  const side = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
    return [at(0.004), at(0.996)];
  };
  const [left, right] = side(x);
  const [bottom, top] = side(y);
  return { x: (left + right) / 2, y: (bottom + top) / 2, width: Math.max(right - left, 0.05), height: Math.max(top - bottom, 0.05) };
}

// Ring these hits on the map, best first.
export async function showHits(records) {
  lastHits = records;
  const placed = new Map();
  const elsewhere = [];
  records.forEach((record, rank) => {
    const place = places.get(record.id);
    if (place === undefined) elsewhere.push({ record, rank });
    else placed.set(record.id, { x: drawing.x[place], y: drawing.y[place], rank, record });
  });
  hits = placed;
  ringed();
  if (!elsewhere.length || !drawing.revision) return;
  const answer = await call("/v1/map", { body: { ids: elsewhere.map(({ record }) => record.id) } });
  for (const { record, rank } of elsewhere) {
    const at = answer.places[record.id];
    if (at && hits === placed) placed.set(record.id, { x: at[0], y: at[1], rank, record });
  }
  ringed();
}

function ringed() {
  $("map").dataset.ringed = hits.size; // a canvas tells nothing else of what it shows
  view.redraw();
}

export function showArrivals(records) {
  const now = performance.now();
  for (const record of records) {
    if (!record.at) continue;
    added.set(record.id, record);
    pulses.push({ x: record.at[0], y: record.at[1], since: now });
  }
  while (added.size > 500) added.delete(added.keys().next().value);
  pulses = pulses.slice(-40);
  if (records.length && mapShown()) view.redraw();
}

// The focused card is marked on the map, too.
export function light(id) {
  lit = id;
  view?.redraw();
}

function choices() {
  const same = drawing.fields.findIndex((field) => field.kind === colourBy.kind && field.name === colourBy.name && field.choices.length);
  const first = drawing.fields.findIndex((field) => field.choices.length > 1);
  const chosen = same >= 0 ? same : byHand ? -1 : first;
  const options = drawing.fields.map((field, place) =>
    // Labels are in meta too, for filters.
    field.choices.length && !(field.kind === "meta" && field.name.startsWith("labels.")) ? el("option", { value: place }, field.kind === "predicted" ? `${field.name}, predicted` : field.name) : null,
  );
  $("colour").replaceChildren(el("option", { value: "" }, "one colour"), ...options.filter(Boolean));
  $("colour").value = chosen >= 0 ? String(chosen) : "";
  colour(drawing.fields[chosen] ?? ALL, same >= 0 ? only : null);
}

function colour(field, kept = null) {
  colourBy = field;
  only = kept;
  const items = field.choices.map((choice, place) => {
    const dot = el("i");
    dot.style.background = colourOf(place);
    dot.style.opacity = pale(place) ? "0.55" : "1";
    const button = el(
      "button",
      {
        type: "button",
        "aria-pressed": String(only === place),
        title: `${choice}: ${field.counts[place]}`,
        onclick: () => {
          only = only === place ? null : place;
          for (const other of $("legend").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button && only !== null));
          view.redraw();
        },
      },
      dot,
      el("span", {}, String(choice)),
    );
    return el("li", {}, button);
  });
  $("legend").replaceChildren(...items);
  view.redraw();
}

// All points: of the drawing, of later writes, and of hits outside the sample.
function* points() {
  for (let place = 0; place < drawing.ids.length; place += 1) yield { id: drawing.ids[place], x: drawing.x[place], y: drawing.y[place], choice: colourBy.of[place] ?? -1, place };
  for (const record of added.values()) yield { id: record.id, x: record.at[0], y: record.at[1], choice: choiceOf(record), record };
}

function choiceOf(record) {
  const maps = { label: record.labels, predicted: record.predicted, meta: record.meta };
  const value = [maps[colourBy.kind]?.[colourBy.name]].flat()[0];
  return colourBy.choices.indexOf(value);
}

function draw(context, toScreen, { width, height, zoom }) {
  const style = getComputedStyle(document.documentElement);
  const [ink, faint, surface, accent] = ["--ink", "--line-strong", "--surface", "--accent"].map((name) => style.getPropertyValue(name).trim());
  const radius = Math.min(7, Math.max(2.2, 3.1 * Math.sqrt(zoom) * (drawing.ids.length > 1200 ? 0.8 : 1)));
  const searching = hits.size > 0;
  for (const point of points()) {
    const [x, y] = toScreen(point.x, point.y);
    if (x < -9 || y < -9 || x > width + 9 || y > height + 9 || hits.has(point.id)) continue;
    const out = only !== null && point.choice !== only;
    context.globalAlpha = out ? 0.1 : searching ? 0.28 : pale(point.choice) ? 0.5 : 0.82;
    context.fillStyle = point.choice >= 0 ? colourOf(point.choice) : colourBy === ALL ? accent : faint;
    dot(context, x, y, radius);
  }
  context.globalAlpha = 1;
  const best = [...hits.entries()].sort((a, b) => b[1].rank - a[1].rank);
  for (const [id, hit] of best) {
    const [x, y] = toScreen(hit.x, hit.y);
    const place = places.get(id);
    const choice = place === undefined ? choiceOf(hit.record) : (colourBy.of[place] ?? -1);
    context.fillStyle = surface;
    dot(context, x, y, radius + 4);
    context.fillStyle = ink;
    dot(context, x, y, radius + 2.6);
    context.fillStyle = choice >= 0 ? colourOf(choice) : accent;
    dot(context, x, y, radius + 0.9);
  }
  marks(context, toScreen, { ink, accent, radius });
}

function marks(context, toScreen, { ink, accent, radius }) {
  const marked = [...points()].filter((point) => point.id === hovered?.id || point.id === lit);
  for (const [id, hit] of hits) if (id === hovered?.id || id === lit) marked.push({ id, ...hit });
  context.lineWidth = 2;
  context.strokeStyle = ink;
  for (const point of marked) {
    const [x, y] = toScreen(point.x, point.y);
    ring(context, x, y, radius + 6);
  }
  const now = performance.now();
  pulses = pulses.filter((pulse) => now - pulse.since < PULSE_MS);
  context.strokeStyle = accent;
  for (const pulse of pulses) {
    const share = calm() ? 0.3 : (now - pulse.since) / PULSE_MS;
    const [x, y] = toScreen(pulse.x, pulse.y);
    context.globalAlpha = 1 - share;
    ring(context, x, y, radius + 3 + 26 * share);
  }
  context.globalAlpha = 1;
  if (!pulses.length) return;
  if (calm()) setTimeout(() => view.redraw(), PULSE_MS);
  else view.redraw();
}

function dot(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function ring(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
}

function nearest(sx, sy, toScreen) {
  let best = null;
  let least = NEAR_PX ** 2;
  const look = (point, bonus) => {
    const [x, y] = toScreen(point.x, point.y);
    const far = ((x - sx) ** 2 + (y - sy) ** 2) * bonus;
    if (far < least) [best, least] = [point, far];
  };
  for (const point of points()) look(point, 1);
  for (const [id, hit] of hits) look({ id, ...hit }, 0.6);
  return best;
}

function press(sx, sy, toScreen) {
  const point = nearest(sx, sy, toScreen);
  if (point) describe(point).then((record) => open(record), () => {}); // deleted since
}

const known = new Map(); // id -> what is shown of it, fetched when the pointer rested there

async function describe(point) {
  const record = hits.get(point.id)?.record ?? point.record ?? known.get(point.id);
  if (record) return record;
  const shown = await call(`/v1/shown?id=${encodeURIComponent(point.id)}`);
  if (shown.unread === null) known.set(point.id, shown);
  if (known.size > 300) known.delete(known.keys().next().value);
  return shown;
}

let resting = 0;

function hover(at, toScreen) {
  const point = at && nearest(at[0], at[1], toScreen);
  $("map").classList.toggle("over", Boolean(point));
  if (point?.id === hovered?.id) return;
  hovered = point;
  view.redraw();
  $("tip").hidden = true;
  clearTimeout(resting);
  if (point) resting = setTimeout(() => describe(point).then((record) => tip(point, record, toScreen), () => {}), 60);
}

function tip(point, record, toScreen) {
  if (hovered?.id !== point.id) return;
  const node = $("tip");
  const labels = Object.values(record.labels ?? {}).flat().slice(0, 2);
  const picture = has(record, "thumb") ? well(record) : null;
  node.replaceChildren(
    ...(picture ? [picture] : []),
    el("p", {}, record.text || record.id),
    el("small", {}, [...labels, record.ts ? ago(record.ts) : ""].filter(Boolean).join(" · ")),
  );
  node.hidden = false;
  const [x, y] = toScreen(point.x, point.y);
  const box = $("canvas-box");
  const left = x + 16 + node.offsetWidth > box.clientWidth ? x - 16 - node.offsetWidth : x + 16;
  node.style.left = `${Math.max(6, Math.min(left, box.clientWidth - node.offsetWidth - 6))}px`;
  node.style.top = `${Math.max(6, Math.min(y - node.offsetHeight / 2, box.clientHeight - node.offsetHeight - 6))}px`;
  picture?.show?.();
}
