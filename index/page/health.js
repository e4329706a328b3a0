// The side panel: whether the pipeline works, and what it could not process.

import { call } from "./api.js";
import { $, el, number } from "./dom.js";

const EVERY_MS = 20_000;
const OPEN_MS = 3000;
const AWAY_MS = 500;
const KINDS = 50; // rows of the table
const STAGES = {
  decode: "reading the message",
  join: "joining parts: one does not fit, or others did not come in time",
  prepare: "links, and decoding of texts and files",
  encode: "the model",
};

let opener = null;

export function prepareHealth() {
  for (const id of ["state", "dead"]) $(id).onclick = () => toggle($("health").hidden, $(id));
  $("health-close").onclick = () => toggle(false);
  $("health").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // the page's own Escape clears the search
    toggle(false);
  });
  watch(deadLetters, EVERY_MS);
  watch(status, OPEN_MS, healthShown);
}

export const healthShown = () => !$("health").hidden;

export function toggle(on, by = null) {
  $("health").hidden = !on;
  $("state").setAttribute("aria-expanded", String(on));
  $("dead").setAttribute("aria-expanded", String(on));
  if (on) {
    opener = by;
    $("health-close").focus();
    status().catch(() => {});
    deadLetters().catch(() => {});
  } else opener?.focus();
}

async function watch(load, every, active = () => true) {
  for (;;) {
    // The header shows that the index is unavailable, and asks for a key.
    const there = ["ready", "behind"].includes($("state").dataset.state) && !document.hidden && active();
    if (there) await load().catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, there ? every : AWAY_MS));
  }
}

// ---- state

async function status() {
  let now;
  try {
    now = await call("/v1/status");
  } catch (error) {
    $("health-facts").replaceChildren(row("State", error.message, "bad"));
    return;
  }
  const lag = Object.values(now.lag ?? {}).reduce((sum, one) => sum + one, 0);
  const building = Object.entries(now.building ?? {});
  const rows = [
    row("Index", now.ready ? "ready" : "not ready", now.ready ? "good" : "warn"),
    row("Messages of vectors to be read", number(lag), lag ? "warn" : "good"),
    row("Texts and pictures (Redis)", now.payloads ? "available" : "not available; read back from Kafka", now.payloads ? "good" : "warn"),
  ];
  if (now.unreadable) rows.push(row("Messages that are no vectors of this index", number(now.unreadable), "bad"));
  if (now.rebuilt) rows.push(row("Read from the beginning, because", now.rebuilt, "warn"));
  for (const [name, state] of building) rows.push(row(`Being built: ${name}`, progress(state), "warn"));
  rows.push(row("Embedding space", now.space));
  $("health-facts").replaceChildren(...rows);
}

const progress = (state) => state?.stops ?? (state?.waits_for ? `waits for ${state.waits_for}` : "ready");

function row(name, value, mood = "") {
  return el("div", { data: { mood } }, el("dt", {}, name), el("dd", {}, String(value)));
}

// ---- dead letters

async function deadLetters() {
  let counts;
  try {
    counts = await call("/v1/dead-letters");
  } catch (error) {
    $("dead").hidden = true;
    $("dead-summary").textContent = `Not counted: ${error.message}.`;
    $("dead-table").hidden = true;
    return;
  }
  const { total, complete, by } = counts;
  const count = `${complete ? "" : "at least "}${number(total)} dead letter${total === 1 ? "" : "s"}`;
  $("dead").textContent = count;
  $("dead").hidden = total === 0;
  $("dead-summary").textContent = total
    ? `${count} in the last hour: messages that could not be processed. They are in the topic dead-letters.`
    : complete ? "None in the last hour." : "Not counted: it takes too long.";
  $("dead-table").hidden = total === 0;
  $("dead-help").hidden = total === 0;
  $("dead-rows").replaceChildren(
    ...by.slice(0, KINDS).map(({ stage, kind, count: many }) =>
      el("tr", {}, el("td", { title: STAGES[stage] ?? null }, stage || "?"), el("td", {}, kind || "?"), el("td", {}, number(many))),
    ),
  );
}
