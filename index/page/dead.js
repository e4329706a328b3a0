// Count of recent dead letters, shown while there are any and the page is visible.

import { call } from "./api.js";
import { $, number } from "./dom.js";

const EVERY_MS = 20_000;
const AWAY_MS = 500;
const SHOWN = 4; // kinds of error

export async function watchDead() {
  for (;;) {
    // The header shows that the index is unavailable, and asks for a key.
    const there = ["ready", "behind"].includes($("state").dataset.state) && !document.hidden;
    if (there) await call("/v1/dead-letters").then(show, () => ($("dead").hidden = true));
    await new Promise((resolve) => setTimeout(resolve, there ? EVERY_MS : AWAY_MS));
  }
}

function show({ total, complete, by }) {
  const kinds = by.slice(0, SHOWN).map(({ stage, kind, count }) => `${stage || "?"} ${kind || "?"} ${number(count)}`);
  if (by.length > SHOWN) kinds.push("…");
  const count = `${complete ? "" : "at least "}${number(total)} dead letter${total === 1 ? "" : "s"}`;
  $("dead").textContent = `${count} in the last hour: ${kinds.join(", ")}`;
  $("dead").hidden = total === 0;
}
