// Long poll for recent writes and counters, while the page is visible.

import { call } from "./api.js";
import { $, ago, number } from "./dom.js";

const WAIT_MS = 2000;
const LEAST_MS = 300; // between two polls while much arrives
const AWAY_MS = 1500;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// `arrived(records, first)` gets new records, newest first; `counted` the counters, null without the index;
// `waiting` why the node is not ready, while it starts.
export async function follow({ arrived, counted, waiting }) {
  let since = null;
  for (;;) {
    if (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
      continue;
    }
    const began = performance.now();
    try {
      const query = since === null ? "" : `?since=${since}&wait_ms=${WAIT_MS}`;
      const answer = await call(`/v1/live${query}`);
      const first = since === null;
      since = answer.number;
      show(answer.counters);
      counted(answer.counters);
      if (first || answer.records.length) arrived(answer.records, first);
      await sleep(Math.max(0, LEAST_MS - (performance.now() - began)));
    } catch (error) {
      const starts = error.status === 503 && error.field === "model";
      away(error, starts);
      counted(null);
      if (starts) {
        since = null;
        waiting(error.reason);
      }
      await sleep(AWAY_MS);
    }
  }
}

function show(counters) {
  $("c-records").textContent = number(counters.records);
  $("c-rate").textContent = rate(counters.per_second);
  $("c-fresh").textContent = duration(counters.freshness_s);
  $("c-fresh").parentElement.hidden = counters.freshness_s === null; // nothing arrived in the last minute
  $("c-model").textContent = counters.model ?? "–";
  $("c-generation").textContent = counters.generation;
  $("c-state").textContent = counters.not_ready ? "catching up" : "live";
  $("state").title = counters.not_ready ?? "";
  $("state").dataset.state = counters.not_ready ? "behind" : "ready";
}

function away(error, starts) {
  $("c-state").textContent = starts ? "waiting" : error.status === 429 ? "asked too often" : "no answer";
  $("state").title = starts ? error.reason : error.message;
  $("state").dataset.state = starts ? "waiting" : "away";
}

function rate(value) {
  if (value === null) return "–";
  return value >= 10 || value === 0 ? number(Math.round(value)) : value.toFixed(1);
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  return `${Math.round(seconds / 60)} min`;
}

// Updates "3 s ago".
export function keepTime() {
  setInterval(() => {
    for (const time of document.querySelectorAll("time[data-ts]")) {
      const text = ago(Number(time.dataset.ts));
      if (time.textContent !== text) time.textContent = text;
    }
  }, 1000);
}
