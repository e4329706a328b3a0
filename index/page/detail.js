// One record: large picture, whole text, sound, labels, predictions, meta, neighbours.
//
// Whatever a record holds is set as text.

import { absence, address, call, release, source, text } from "./api.js";
import { bar, player, reasons, well } from "./cards.js";
import { $, ago, el, iso, number } from "./dom.js";
import { recordHash } from "./links.js";
import { has, nounOf } from "./modalities.js";
import { show as showLink } from "./share.js";

const NEIGHBOURS = 8;
const CUT_TEXT = 2000; // characters that the service keeps at hand; the whole text is read from Kafka
const MAX_ROWS = 100; // of meta, and of tasks

let now = null; // id of the record that is shown
let opened = new AbortController(); // ends its requests
let act = { like: () => {}, open: () => {}, closed: () => {}, step: () => {} };

// `like(record)` searches, `open(record)` shows another record, `closed()` and `step(±1)` say what was
// pressed.
export function prepareDetail(actions) {
  act = actions;
  const dialog = $("detail");
  $("detail-close").onclick = () => dialog.close();
  $("detail-prev").onclick = () => act.step(-1);
  $("detail-next").onclick = () => act.step(1);
  $("detail-share").onclick = () => {
    dialog.close();
    showLink(`${location.origin}${location.pathname}${link}`);
  };
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  dialog.addEventListener("close", () => {
    now = null;
    opened.abort();
    $("detail-body").replaceChildren();
    act.closed();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.closest("input")) return;
    event.preventDefault();
    act.step(step);
  });
}

let link = "";

export const detailShown = () => now;

export function closeDetail() {
  if ($("detail").open) $("detail").close();
}

// Show a record. `hit` is it as a search found it, if one did; `cut` the search's cut-off.
export async function showDetail(id, { hit = null, cut = null, steps = false } = {}) {
  now = id;
  opened.abort();
  const { signal } = (opened = new AbortController());
  link = recordHash(id);
  $("detail-prev").hidden = $("detail-next").hidden = !steps;
  $("detail-body").replaceChildren(el("p", { class: "wait" }, "Loading"));
  $("detail-head").textContent = hit?.text || id;
  if (!$("detail").open) $("detail").showModal();
  $("detail-close").focus();
  let record;
  try {
    record = await call(`/v1/shown?id=${encodeURIComponent(id)}`, { signal });
  } catch (error) {
    if (!signal.aborted) $("detail-body").replaceChildren(el("p", { class: "wait", role: "alert" }, error.status === 404 ? `There is no record ${id}: it was deleted, or has another id.` : error.message));
    return;
  }
  if (signal.aborted) return;
  $("detail-head").textContent = (record.text || id).slice(0, 200);
  $("detail-body").replaceChildren(media(record, signal), facts(record, hit, cut), neighbours(record, signal));
  $("detail").scrollTop = 0;
}

// ---- picture, text, sound

function media(record, signal) {
  const node = el("div", { class: "media" });
  if (has(record, "thumb")) node.append(picture(record, signal));
  if (record.modalities.includes("text")) node.append(words(record, signal));
  if (has(record, "snippet")) node.append(player(record, { kind: "sound", signal }));
  return node;
}

// The thumbnail is there at once; the large picture replaces it.
function picture(record, signal) {
  const image = el("img", { alt: record.text || `Picture of ${record.id}` });
  const node = el("div", { class: "large" }, image);
  const absent = (error) => node.replaceChildren(el("p", { class: "absent" }, absence("The picture", error)));
  const put = async (kind) => {
    const url = await source(kind, record, { here: true, signal });
    const ready = new Image();
    ready.src = url;
    await ready.decode();
    image.src = url;
    image.dataset.kind = kind;
    image.addEventListener("load", () => release(url), { once: true });
  };
  put("thumb").catch(() => {}).finally(() => put("picture").catch((error) => image.src || absent(error)));
  return node;
}

function words(record, signal) {
  const node = el("p", { class: "words" }, record.text ?? absence("The text", { status: record.unread ? 503 : 404 }));
  if (record.text === null) node.classList.add("absent");
  else if (record.text.length >= CUT_TEXT) text(address("text", record), { signal }).then((whole) => (node.textContent = whole), () => {});
  return node;
}

// ---- what is known of it

function facts(record, hit, cut) {
  return el("div", { class: "facts" }, ...[why(hit, cut), predictions(record), meta(record), origin(record)].filter(Boolean));
}

const section = (title, ...content) => el("section", {}, el("h3", {}, title), ...content);

function why(hit, cut) {
  const scores = hit ? reasons(hit) : [];
  if (!scores.length) return null;
  const rows = scores.map(([modality, value]) =>
    el("li", {}, el("span", {}, nounOf(modality)), bar(value, modality), el("b", {}, value.toFixed(3))),
  );
  const total = el("li", { class: "total" }, el("span", {}, "score"), bar(hit.score, "", cut), el("b", {}, hit.score.toFixed(3)));
  const note = cut === null ? "" : ` The mark is the minimum score of ${cut.toFixed(2)}.`;
  return section("Why it matched", el("ul", { class: "why" }, ...rows, total), el("p", { class: "note-line" }, `Cosine similarity of the query with each vector of this record, and with the one that was searched.${note}`));
}

const shown = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return String(Number(value.toPrecision(4)));
  return [value].flat().join(", ") || "none";
};
const percent = (value) => (typeof value === "number" ? ` ${Math.round(value * 100)}%` : "");
const alone = (one) => (one ? shown(one.label ?? one.labels ?? one.value) + percent(one.prob) : "–");

function predictions(record) {
  const [labels, predicted, details] = [record.labels ?? {}, record.predicted ?? {}, record.predictions ?? {}];
  const tasks = [...new Set([...Object.keys(labels), ...Object.keys(predicted), ...Object.keys(details)])].slice(0, MAX_ROWS);
  if (!tasks.length) return null;
  const sources = [...new Set(tasks.flatMap((task) => Object.keys(details[task]?.by ?? {})))];
  const heads = ["Task", "Label", "Predicted", ...sources.map((name) => (name === "fused" ? "all as one" : `by ${nounOf(name)}`))];
  const rows = tasks.map((task) => {
    const detail = details[task] ?? {};
    const result = detail.text ?? (task in predicted ? predicted[task] : null);
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, task),
      el("td", {}, shown(labels[task])),
      el("td", { class: "result" }, result === null ? "–" : shown(result) + percent(detail.prob)),
      ...sources.map((name) => el("td", {}, alone(detail.by?.[name]))),
    );
  });
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...rows));
  return section(Object.keys(predicted).length ? "Labels and predictions" : "Labels", el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Labels and predictions" }, table));
}

const list = (pairs) => el("dl", {}, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

function meta(record) {
  const pairs = Object.entries(record.meta)
    .filter(([name]) => !name.startsWith("labels.")) // in the table of tasks already
    .slice(0, MAX_ROWS)
    .map(([name, value]) => [name, shown(value)]);
  return pairs.length ? section("Meta", list(pairs)) : null;
}

function origin(record) {
  const time = iso(record.ts);
  const pairs = [
    ["Id", record.id],
    ["Time", time === null ? ago(record.ts) : el("time", { datetime: time }, `${time.slice(0, 19).replace("T", " ")} UTC, ${ago(record.ts)}`)],
    ["Model", record.model],
    ["Place in records", `partition ${record.partition}, offset ${number(record.version)}`],
    ...Object.entries(record.uri ?? {}).map(([name, uri]) => [`Link of its ${nounOf(name)}`, uri]),
  ];
  return section("Origin", list(pairs));
}

// ---- neighbours

function neighbours(record, signal) {
  const row = el("ul", { class: "near" });
  const like = el("button", { class: "like", type: "button", onclick: () => act.like(record) }, "More like this");
  const node = el("section", { class: "neighbours" }, el("header", {}, el("h3", {}, "Nearest records"), like), row);
  call("/v1/search", { body: { id: record.id, k: NEIGHBOURS + 1 }, signal }).then(
    (answer) => {
      const others = answer.hits.filter((hit) => hit.id !== record.id).slice(0, NEIGHBOURS);
      row.append(...others.map(neighbour));
      if (!others.length) row.replaceWith(el("p", {}, "There is no other record."));
    },
    (error) => signal.aborted || row.replaceWith(el("p", {}, `They cannot be shown: ${error.message}`)),
  );
  return node;
}

function neighbour(hit) {
  const name = hit.text || hit.id;
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    act.open(hit);
  };
  const link = el("a", { href: recordHash(hit.id), onclick: follow }, well(hit), el("span", {}, name), el("small", {}, hit.score.toFixed(2)));
  return el("li", { data: { id: hit.id } }, link);
}
