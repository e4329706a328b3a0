// The cut-off: hits below it are no good match. Its default comes with the answer.

import { $, el, number } from "./dom.js";

let own = null; // somebody's choice; null: the answer's
let answer = null;
let changed = () => {};

// `moved` shows the hits again; `settled` is called when the slider is let go.
export function prepareCutoff({ moved, settled }) {
  changed = moved;
  $("cut").addEventListener("input", () => {
    own = Number($("cut").value);
    changed();
  });
  $("cut").addEventListener("change", settled);
  $("cut-reset").onclick = () => {
    own = null;
    changed();
    settled();
    $("cut").focus();
  };
}

export const ownCutoff = () => own;
export function setCutoff(value) {
  own = value;
}

// The hits of an answer that are good matches, and the others. Shows the control.
export function divide(latest) {
  answer = latest;
  const cut = own ?? answer.cutoff ?? null;
  draw(cut);
  if (cut === null) return { good: answer.hits, rest: [], cut };
  const good = answer.hits.filter((hit) => hit.score >= cut);
  return { good, rest: answer.hits.slice(good.length), cut };
}

export function hideCutoff() {
  answer = null;
  $("cut-box").hidden = true;
}

function draw(cut) {
  const scores = answer.hits.map((hit) => hit.score);
  $("cut-box").hidden = scores.length === 0;
  if (!scores.length) return;
  const least = Math.min(...scores, answer.cutoff ?? 1, cut ?? 1);
  $("cut").min = String(Math.floor(least * 100 - 1) / 100);
  $("cut").max = "1";
  $("cut").value = String(cut ?? $("cut").min);
  const text = cut === null ? "none" : cut.toFixed(2);
  $("cut-value").textContent = text;
  $("cut").setAttribute("aria-valuetext", text);
  $("cut-reset").hidden = own === null;
}

const reached = (answer) =>
  answer.cutoff === null
    ? "The index cannot tell which score unrelated records reach: it has too few records, or too many that match."
    : `By chance the best of the unrelated records scores ${answer.cutoff.toFixed(2)}: the mean of a random sample plus √(2 ln N) standard deviations.`;

// What is shown instead of hits, if none is a good match.
export function noGoodMatch(answer, cut, records, show) {
  const best = answer.hits[0].score.toFixed(3);
  const among = records === null ? "The closest record" : `The closest of ${number(records)} records`;
  return [
    el("img", { src: "/page/icon.svg", alt: "" }),
    el("h2", {}, "No good match"),
    el("p", {}, `${among} scores ${best}, below the minimum of ${cut.toFixed(3)}.`),
    el("p", { class: "why" }, reached(answer)),
    el("button", { class: "quiet", type: "button", onclick: show }, answer.hits.length === 1 ? "Show it all the same" : `Show the ${answer.hits.length} closest all the same`),
  ];
}

// The line below the good matches.
export function belowLine(answer, rest, cut, show) {
  const what = rest.length === 1 ? "1 more record is" : `${rest.length} more records are`;
  return [
    el("p", { title: reached(answer) }, `${what} below the minimum score of ${cut.toFixed(2)}.`),
    el("button", { class: "quiet", type: "button", onclick: show }, rest.length === 1 ? "Show it" : "Show them"),
  ];
}
