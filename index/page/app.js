// Entry point of the page: query state, results, keyboard.

import { call } from "./api.js";
import { askLike, askShared, asked, clearAsking, keysOf, mediaParts, prepareAsking } from "./ask.js";
import { arrival, card, ghosts } from "./cards.js";
import { belowLine, divide, hideCutoff, noGoodMatch, ownCutoff, prepareCutoff, setCutoff } from "./cutoff.js";
import { closeDetail, detailShown, prepareDetail, showDetail } from "./detail.js";
import { $, el, empty, say, sentence } from "./dom.js";
import { filter, prepareFilters, setFields, setFilter } from "./filters.js";
import { healthShown, prepareHealth, toggle as toggleHealth } from "./health.js";
import { build, go, parse } from "./links.js";
import { follow, keepTime } from "./live.js";
import { light, loadMap, mapShown, prepareMap, showArrivals, showHits } from "./map.js";
import { askable, served, setServed } from "./modalities.js";
import { prepareSharing } from "./share.js";

const KEPT = 24; // of what has just arrived
const LISTED = 6;
const WIDE = matchMedia("(min-width: 901px)");

let latest = []; // records, newest first
let searching = null; // the AbortController of the search that runs
let searched = false; // whether results are shown, not what has just arrived
let known = false; // whether the service has answered what there is
let payloads = true;
let answer = null; // the last one
let all = false; // whether hits below the cut-off are shown, too
let records = null; // how many there are
let inAddress = null; // the search that the address shows

// ---- searching

const vectorName = () => document.querySelector("#vector input:checked").value;

// `options` are of the address: a search of a link replaces it and keeps its record.
async function search(options) {
  searching?.abort();
  const what = asked();
  if (what === null) {
    if (filterOrNote() !== undefined && filter() !== null) note(`Filters narrow a search: type words${askable() && `, or add ${askable()}`}.`);
    else note("");
    home(options);
    return;
  }
  const where = filterOrNote();
  if (where === undefined) return;
  const body = { ...what, k: Number($("k").value), vector: vectorName(), explain: true };
  if (where !== null) body.filter = where;
  link(options);
  const mine = (searching = new AbortController());
  $("results").setAttribute("aria-busy", "true");
  if (!searched) {
    heading("Searching", "");
    $("empty").hidden = true;
    $("results").replaceChildren(...ghosts(8));
  }
  searched = true;
  try {
    const latest = await call("/v1/search", { body, signal: mine.signal });
    if (mine !== searching) return;
    note("");
    all = false;
    show(latest);
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
    return note(error.message, true); // undefined
  }
}

function show(latest) {
  answer = latest;
  const { good, rest, cut } = divide(answer);
  const hits = all ? answer.hits : good;
  const none = answer.hits.length > 0 && !hits.length;
  heading(
    none ? "No good match" : hits.length === 1 ? "1 result" : `${hits.length} results`,
    [`${answer.took_ms.toFixed(answer.took_ms < 10 ? 1 : 0)} ms`, answer.model].filter(Boolean).join(" · "),
  );
  $("results").replaceChildren(...hits.map((hit, place) => card(hit, { rank: place + 1, like, open: openRecord })));
  if (all && cut !== null) for (const node of [...$("results").children].slice(good.length)) node.classList.add("weak");
  const showAll = () => {
    all = true;
    show(latest);
    focusCard($("results").children[good.length]);
  };
  if (none) say(noGoodMatch(answer, cut, records, showAll));
  else empty(hits.length ? null : ["Nothing like that", "No record has that kind of vector and passes the filters. Compare with everything, or remove a filter."]);
  $("below").hidden = none || all || rest.length === 0;
  $("below").replaceChildren(...(rest.length ? belowLine(answer, rest, cut, showAll) : []));
  withoutPayloads(answer.payloads === "unavailable");
  $("arrivals").hidden = $("share").hidden = false;
  listArrivals([]);
  showHits(hits).catch(() => {});
}

function refused(error) {
  note("");
  forgetAnswer();
  $("results").replaceChildren();
  heading("No results", "");
  empty([sentence(error.message), error.status === 0 || error.field === "model" ? "The page goes on by itself as soon as the index is back." : "Change the question and try again."], true);
  showHits([]).catch(() => {});
}

function forgetAnswer() {
  answer = null;
  hideCutoff();
  $("below").hidden = true;
  $("share").hidden = asked() === null;
}

function like(record) {
  closeDetail();
  askLike(record.id, (record.text || record.id).slice(0, 60));
  scrollTo({ top: 0 });
  search();
}

// ---- one record

function openRecord(record) {
  goTo(parse().search, { record: record.id });
  showRecord(record.id);
}

function showRecord(id) {
  const hit = answer?.hits.find((one) => one.id === id) ?? null;
  const cut = ownCutoff() ?? answer?.cutoff ?? null;
  const steps = cards().length > 1 && cards().some((node) => node.dataset.id === id);
  showDetail(id, { hit, cut, steps });
}

function stepRecord(step) {
  const ids = cards().map((node) => node.dataset.id);
  const next = ids[ids.indexOf(detailShown()) + step];
  if (!ids.includes(detailShown()) || next === undefined) return;
  goTo(parse().search, { record: next, replace: true });
  showRecord(next);
}

function recordClosed() {
  const { record, search: rest } = parse();
  if (record === null) return;
  goTo(rest, { replace: true });
  focusCard(cards().find((node) => node.dataset.id === record));
}

// ---- recent writes

function home(options = { record: parse().record }) {
  searched = false;
  searching?.abort();
  $("results").setAttribute("aria-busy", "false");
  goTo("", options);
  forgetAnswer();
  heading("Just arrived", "");
  $("arrivals").hidden = true;
  $("results").replaceChildren(...(known ? latest.map((record, place) => card(record, { rank: place + 1, like, open: openRecord })) : ghosts(8)));
  if (known) nothingYet();
  showHits([]).catch(() => {});
}

function arrived(records, atStart) {
  const fresh = new Set(records.map((record) => record.id));
  latest = [...records, ...latest.filter((record) => !fresh.has(record.id))].slice(0, KEPT);
  if (!atStart) showArrivals(records);
  known = true;
  if (atStart && !searched) home();
  else if (!searched) {
    for (const old of [...$("results").children]) if (fresh.has(old.dataset.id)) old.remove();
    $("results").prepend(...records.map((record) => card(record, { like, open: openRecord, fresh: true })));
    while ($("results").childElementCount > KEPT) $("results").lastElementChild.remove();
    nothingYet();
  }
  listArrivals(atStart ? [] : [...fresh]);
}

function listArrivals(fresh) {
  if (!searched) return;
  const list = latest.slice(0, LISTED);
  $("arrivals-list").replaceChildren(...list.map((record) => arrival(record, { open: openRecord, fresh: fresh.includes(record.id) })));
}

function counted(counters) {
  if (counters === null) return;
  const first = !served().length;
  setServed(counters.modalities, counters.max_upload);
  if (first) followLink();
  records = counters.records;
  if (counters.payloads !== payloads) withoutPayloads(!counters.payloads);
  if (mapShown() || !$("filters").hidden) loadMap().catch(() => {});
}

function waiting(reason) {
  known = false;
  if (searched) return;
  $("results").replaceChildren();
  empty([sentence(reason), "The page goes on by itself as soon as the node is ready."]);
}

function nothingYet() {
  empty(latest.length ? null : ["Nothing here yet", "Records show up here as soon as they are searchable. Send the first:", "braid produce pictures/ --label category"]);
}

// ---- small parts

function heading(text, summary) {
  $("heading").textContent = text;
  $("summary").textContent = summary;
  document.title = searched && text !== "Searching" ? `${$("words").value || text} – braid` : "braid";
}

function note(text, bad = false) {
  const others = [...$("notes").querySelectorAll("[data-kind]")];
  $("notes").replaceChildren(...(text ? [el("div", { class: bad ? "note bad" : "note", role: bad ? "alert" : null }, text)] : []), ...others);
}

function withoutPayloads(missing) {
  if (payloads === !missing) return;
  payloads = !missing;
  $("notes").querySelector("[data-kind=payloads]")?.remove();
  if (missing) $("notes").append(el("div", { class: "note", data: { kind: "payloads" } }, "payloads: unavailable. Redis does not answer, so texts and files are read back from Kafka where they still are; searching goes on."));
}

// ---- links

function goTo(search, options) {
  inAddress = search;
  go(search, options);
}

const current = () => ({ what: asked(), keys: keysOf(mediaParts()), vector: vectorName(), k: $("k").value, where: filter(), min: ownCutoff() });

const link = (options) => goTo(build(current()), options);

async function followLink() {
  if (!served().length) return; // the first answer follows it
  const state = parse();
  if (state.search !== inAddress) {
    inAddress = state.search;
    clearAsking();
    $("words").value = state.text;
    if (state.id !== null) askLike(state.id, state.id);
    for (const input of document.querySelectorAll("#vector input")) input.checked = input.value === state.vector;
    $("k").value = [...$("k").options].some((option) => option.value === state.k) ? state.k : "24";
    setFilter(state.where);
    setCutoff(state.min);
    searched = true; // so that what has just arrived does not replace it
    const lost = await askShared(state.keys).then(() => null, (error) => error);
    if (state.search !== inAddress) return; // another link meanwhile
    if (lost) state.wrong.push(lost.status === 404 ? "A file of this link is no longer kept. Add it again to repeat the search." : lost.message);
    await search({ replace: true, record: state.record });
    if (state.wrong.length) note(state.wrong.join(" "), true);
  }
  const { record } = parse(); // of the newest link
  if (record === null) closeDetail();
  else if (detailShown() !== record) showRecord(record);
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
    openRecord(record);
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

const cards = () => [...$("results").querySelectorAll(".card:not(.ghost)")];

function move(key) {
  const there = cards();
  const now = there.findIndex((node) => node.contains(document.activeElement));
  if (now < 0) {
    focusCard(there[0]);
    return there.length > 0;
  }
  const across = there.filter((node) => node.offsetTop === there[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across };
  const next = now + steps[key];
  if (next < 0) $("words").focus();
  else focusCard(there[Math.min(next, there.length - 1)]);
  return true;
}

function keys(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input:not([type=radio]):not([type=range]), textarea, select");
  const inBox = event.target === $("words");
  if (event.key === "Escape") {
    if (healthShown()) toggleHealth(false);
    else if (!$("filters").hidden && $("filters").contains(event.target)) $("filter-button").click();
    else {
      startAgain();
      $("words").focus();
    }
  } else if (inBox && event.key === "ArrowDown") move("ArrowDown");
  else if (typing || event.target.closest("#health")) return;
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
    if (event.key === "Enter" && event.target === focused) focused.querySelector(".open").click();
    else if (event.key === "l") focused.querySelector(".like").click();
    else if (event.key === "p") focused.querySelector(".player button")?.click();
    else return;
  }
  event.preventDefault();
}

function startAgain() {
  clearAsking();
  setFilter(null);
  setCutoff(null);
  note("");
  home();
}

// ---- start

function begin() {
  prepareAsking({ asked: () => search(), failed: (text) => note(text, true) });
  prepareFilters(() => asked() && search());
  prepareMap({ opened: openFromMap, fieldsFound: setFields });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const id of ["vector", "k"]) $(id).addEventListener("change", () => asked() && search());
  // A minimum means something for the vector that it was chosen for.
  $("vector").addEventListener("change", () => setCutoff(null), { capture: true });
  prepareCutoff({
    moved: () => {
      if (answer === null) return;
      all = false;
      show(answer);
    },
    settled: () => link({ replace: true }),
  });
  prepareDetail({ like, open: openRecord, closed: recordClosed, step: stepRecord });
  const shared = (hash) => build(current()) === hash && goTo(hash, { replace: true }); // unless the search has changed
  prepareSharing({ current, shared, failed: (text) => note(text, true) });
  $("map-button").onclick = () => toggleMap(!mapShown());
  $("filter-button").addEventListener("click", () => loadMap().catch(() => {}));
  $("results").addEventListener("focusin", (event) => light(event.target.closest(".card")?.dataset.id ?? null));
  $("results").addEventListener("focusout", () => light(null));
  $("results").addEventListener("mouseover", (event) => light(event.target.closest(".card")?.dataset.id ?? null));
  $("results").addEventListener("mouseleave", () => light(null));
  document.addEventListener("keydown", keys);
  document.querySelector(".brand").addEventListener("click", (event) => {
    event.preventDefault();
    startAgain();
  });
  addEventListener("popstate", followLink);
  $("results").replaceChildren(...ghosts(8));
  inAddress = location.hash.length > 1 ? null : "";
  toggleMap(WIDE.matches);
  keepTime();
  follow({ arrived, counted, waiting });
  prepareHealth();
}

begin();
