// Entry point of the page: query state, results, keyboard.

import { call } from "./api.js";
import { askLike, asked, clearAsking, prepareAsking } from "./ask.js";
import { arrival, card, ghosts } from "./cards.js";
import { watchDead } from "./dead.js";
import { $, el } from "./dom.js";
import { filter, prepareFilters, setFields, setFilter } from "./filters.js";
import { follow, keepTime } from "./live.js";
import { light, loadMap, mapShown, prepareMap, showArrivals, showHits } from "./map.js";

const KEPT = 24; // of what has just arrived
const LISTED = 6;
const WIDE = matchMedia("(min-width: 901px)");

let latest = []; // records, newest first
let searching = null; // the AbortController of the search that runs
let found = false; // whether results are shown, not what has just arrived
let known = false; // whether the service has told what there is
let payloads = true;

// ---- searching

async function search() {
  searching?.abort();
  const what = asked();
  if (what === null) {
    if (filterOrNote() !== undefined && filter() !== null) note("Filters narrow a search: type words, or add a picture or a sound.");
    else note("");
    home();
    return;
  }
  const where = filterOrNote();
  if (where === undefined) return;
  const vector = document.querySelector("#vector input:checked").value;
  const body = { ...what, k: Number($("k").value), vector };
  if (where !== null) body.filter = where;
  link(what, vector, where);
  const mine = (searching = new AbortController());
  $("results").setAttribute("aria-busy", "true");
  if (!found) {
    heading("Searching", "");
    $("empty").hidden = true;
    $("results").replaceChildren(...ghosts(8));
  }
  found = true;
  try {
    const answer = await call("/v1/search", { body, signal: mine.signal });
    if (mine !== searching) return;
    note("");
    show(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    refused(error);
  } finally {
    if (mine === searching) $("results").setAttribute("aria-busy", "false");
  }
}

function filterOrNote() {
  try {
    return filter();
  } catch (error) {
    note(error.message, true);
    return undefined;
  }
}

function show(answer) {
  const count = answer.hits.length;
  heading(
    count === 1 ? "1 result" : `${count} results`,
    [`${answer.took_ms.toFixed(answer.took_ms < 10 ? 1 : 0)} ms`, answer.model].filter(Boolean).join(" · "),
  );
  $("results").replaceChildren(...answer.hits.map((hit, place) => card(hit, { rank: place + 1, like })));
  empty(count ? null : ["Nothing like that", "No record has that kind of vector and passes the filters. Compare with all, or remove a filter."]);
  withoutPayloads(answer.payloads === "unavailable");
  $("arrivals").hidden = false;
  listArrivals([]);
  showHits(answer.hits).catch(() => {});
}

function refused(error) {
  note("");
  $("results").replaceChildren();
  heading("No results", "");
  empty([sentence(error.message), error.status === 0 ? "The page goes on by itself as soon as the index is back." : "Change the question and try again."], true);
  showHits([]).catch(() => {});
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function like(record) {
  askLike(record.id, (record.text || record.id).slice(0, 60));
  scrollTo({ top: 0 });
  search();
}

// ---- recent writes

function home() {
  found = false;
  searching?.abort();
  $("results").setAttribute("aria-busy", "false");
  if (location.hash) history.pushState(null, "", location.pathname);
  heading("Just arrived", "");
  $("arrivals").hidden = true;
  $("results").replaceChildren(...(known ? latest.map((record, place) => card(record, { rank: place + 1, like })) : ghosts(8)));
  if (known) nothingYet();
  showHits([]).catch(() => {});
}

function arrived(records, atStart) {
  const fresh = new Set(records.map((record) => record.id));
  latest = [...records, ...latest.filter((record) => !fresh.has(record.id))].slice(0, KEPT);
  if (!atStart) showArrivals(records);
  known = true;
  if (atStart && !found) home();
  else if (!found) {
    for (const old of [...$("results").children]) if (fresh.has(old.dataset.id)) old.remove();
    $("results").prepend(...records.map((record) => card(record, { like, fresh: true })));
    while ($("results").childElementCount > KEPT) $("results").lastElementChild.remove();
    nothingYet();
  }
  listArrivals(atStart ? [] : [...fresh]);
}

function listArrivals(fresh) {
  if (!found) return;
  const list = latest.slice(0, LISTED);
  $("arrivals-list").replaceChildren(...list.map((record) => arrival(record, { open: like, fresh: fresh.includes(record.id) })));
}

function counted(counters) {
  if (counters === null) return;
  if (counters.payloads !== payloads) withoutPayloads(!counters.payloads);
  if (mapShown() || !$("filters").hidden) loadMap().catch(() => {});
}

function nothingYet() {
  empty(latest.length ? null : ["Nothing here yet", "Records show up here as soon as they are searchable. Send the first:", "braid produce pictures/ --label category"]);
}

// ---- small parts

function heading(text, summary) {
  $("heading").textContent = text;
  $("summary").textContent = summary;
  document.title = found && text !== "Searching" ? `${$("words").value || text} – braid` : "braid";
}

function empty(words, alert = false) {
  $("empty").hidden = words === null;
  $("empty").setAttribute("role", alert ? "alert" : "status");
  if (words === null) return;
  const [head, text, code] = words;
  $("empty").replaceChildren(el("img", { src: "/page/icon.svg", alt: "" }), el("h2", {}, head), el("p", {}, text), ...(code ? [el("code", {}, code)] : []));
}

function note(text, bad = false) {
  const others = [...$("notes").querySelectorAll("[data-kind]")];
  $("notes").replaceChildren(...(text ? [el("div", { class: bad ? "note bad" : "note", role: bad ? "alert" : null }, text)] : []), ...others);
}

function withoutPayloads(missing) {
  if (payloads === !missing) return;
  payloads = !missing;
  $("notes").querySelector("[data-kind=payloads]")?.remove();
  if (missing) $("notes").append(el("div", { class: "note", data: { kind: "payloads" } }, "payloads: unavailable. Redis does not answer, so texts, pictures and sounds are read back from Kafka where they still are; searching goes on."));
}

// ---- links

function link(what, vector, where) {
  const parts = new URLSearchParams();
  if (what.text) parts.set("q", what.text);
  if (what.id) parts.set("id", what.id);
  if (vector !== "fused") parts.set("vector", vector);
  if ($("k").value !== "24") parts.set("k", $("k").value);
  if (where) parts.set("filter", JSON.stringify(where));
  const hash = `#${parts}`;
  if (hash !== location.hash && (what.text || what.id)) history.pushState(null, "", hash);
}

function followLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  clearAsking();
  $("words").value = parts.get("q") ?? "";
  if (parts.has("id")) askLike(parts.get("id"), parts.get("id"));
  const vector = parts.get("vector") ?? "fused";
  for (const input of document.querySelectorAll("#vector input")) input.checked = input.value === vector;
  $("k").value = [...$("k").options].some((option) => option.value === parts.get("k")) ? parts.get("k") : "24";
  try {
    setFilter(parts.has("filter") ? JSON.parse(parts.get("filter")) : null);
  } catch {
    setFilter(null);
  }
  if (parts.has("q") || parts.has("id")) search();
  else home();
}

// ---- the map

function toggleMap(on) {
  $("columns").classList.toggle("mapped", on);
  $("map-button").setAttribute("aria-pressed", String(on));
  if (on) loadMap({ now: true }).catch(() => {});
}

function openFromMap(record) {
  const there = [...$("results").children].find((node) => node.dataset.id === record.id);
  if (!there) {
    like(record);
    return;
  }
  there.scrollIntoView({ block: "nearest" });
  focusCard(there);
}

// ---- keys

function focusCard(node) {
  if (!node) return;
  for (const other of $("results").querySelectorAll(".card[tabindex='0']")) other.tabIndex = -1;
  node.tabIndex = 0;
  node.focus();
}

function move(key) {
  const cards = [...$("results").querySelectorAll(".card:not(.ghost)")];
  const now = cards.findIndex((node) => node.contains(document.activeElement));
  if (now < 0) {
    focusCard(cards[0]);
    return cards.length > 0;
  }
  const across = cards.filter((node) => node.offsetTop === cards[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across };
  const next = now + steps[key];
  if (next < 0) $("words").focus();
  else focusCard(cards[Math.min(next, cards.length - 1)]);
  return true;
}

function keys(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || $("key-dialog").open) return;
  const typing = event.target.closest("input:not([type=radio]):not([type=range]), textarea, select");
  const inBox = event.target === $("words");
  if (event.key === "Escape") {
    if (!$("filters").hidden && $("filters").contains(event.target)) $("filter-button").click();
    else {
      clearAsking();
      setFilter(null);
      note("");
      home();
      $("words").focus();
    }
  } else if (inBox && event.key === "ArrowDown") move("ArrowDown");
  else if (typing) return;
  else if (event.key === "/") {
    $("words").focus();
    $("words").select();
  } else if (event.key === "m") toggleMap(!mapShown());
  else if (event.key.startsWith("Arrow") && !event.target.closest(".segments, .player")) {
    if (!event.target.closest("#results, body > :not(main)") && event.target !== document.body) return;
    if (!move(event.key)) return;
  } else {
    const focused = event.target.closest(".card");
    if (!focused) return;
    if (event.key === "l" || (event.key === "Enter" && event.target === focused)) focused.querySelector(".like").click();
    else if (event.key === "p") focused.querySelector(".player button")?.click();
    else return;
  }
  event.preventDefault();
}

// ---- start

function begin() {
  prepareAsking({ asked: search, failed: (text) => note(text, true) });
  prepareFilters(() => (asked() ? search() : undefined));
  prepareMap({ opened: openFromMap, fieldsFound: setFields });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const input of [...document.querySelectorAll("#vector input"), $("k")]) input.addEventListener("change", () => asked() && search());
  $("map-button").onclick = () => toggleMap(!mapShown());
  $("filter-button").addEventListener("click", () => loadMap().catch(() => {}));
  $("results").addEventListener("focusin", (event) => light(event.target.closest(".card")?.dataset.id ?? null));
  $("results").addEventListener("focusout", () => light(null));
  $("results").addEventListener("mouseover", (event) => light(event.target.closest(".card")?.dataset.id ?? null));
  $("results").addEventListener("mouseleave", () => light(null));
  document.addEventListener("keydown", keys);
  document.querySelector(".brand").addEventListener("click", (event) => {
    event.preventDefault();
    clearAsking();
    setFilter(null);
    note("");
    home();
  });
  addEventListener("popstate", followLink);
  if (matchMedia("(max-width: 560px)").matches) $("words").placeholder = "Words, a picture, a sound";
  $("results").replaceChildren(...ghosts(8));
  if (location.hash.length > 1) followLink();
  toggleMap(WIDE.matches);
  keepTime();
  follow({ arrived, counted });
  watchDead();
}

begin();
