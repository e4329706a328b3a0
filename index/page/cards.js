// A record as a card: picture, caption, player, score, matched modality, meta.

import { absence, call, release, source } from "./api.js";
import { PAUSE, PLAY, WAVE, ago, el, icon, iso, number } from "./dom.js";
import { recordHash } from "./links.js";
import { has, nounOf } from "./modalities.js";

const MAX_META = 6;
const MAX_TASKS = 12; // whose labels, and whose predictions, are shown
const MAX_TEXT = 28; // characters of a name or a value of meta; a title shows more
const MAX_TITLE = 300;
const GONE = { status: 404 };

const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      target.show?.();
    }
  },
  { rootMargin: "300px" },
);

// The picture of a record, or a placeholder. `rank` is shown in its corner.
export function well(record, { rank, words = true } = {}) {
  const node = el("div", { class: "well" });
  if (has(record, "thumb")) {
    const image = el("img", { alt: "", decoding: "async", width: 224, height: 168 });
    node.classList.add("pictured");
    node.append(image);
    const absent = (error) => {
      image.remove();
      node.classList.remove("pictured");
      node.append(el("span", { class: "absent" }, words ? absence("Its picture", error) : "–"));
    };
    const put = (here) => source("thumb", record, { here }).then((url) => (image.src = url), absent);
    image.addEventListener("load", () => {
      image.classList.add("there");
      release(image.src);
    });
    image.addEventListener("error", () => (image.src.startsWith("blob:") ? absent(GONE) : put(true)));
    node.show = () => put();
    seen.observe(node);
  } else if (words && record.text) {
    node.append(el("p", { class: "quote", "aria-hidden": "true" }, record.text));
  } else {
    node.append(icon(has(record, "snippet") ? WAVE : "M5 7h14M5 12h14M5 17h9", "wave"));
  }
  if (rank) node.append(el("span", { class: "place", "aria-hidden": "true" }, String(rank)));
  return node;
}

const short = (text, most = MAX_TEXT) => (text.length > most ? `${text.slice(0, most)}…` : text);

// A card as <li>. `hit` has a score if it comes from a search. A record that cannot be drawn is
// shown by its id, so that it does not break the page.
export function card(hit, options = {}) {
  try {
    return drawn(hit, options);
  } catch (error) {
    console.error(error);
    return el("li", { class: "card", tabindex: -1, data: { id: hit.id } }, el("div", { class: "body" }, el("p", { class: "caption named" }, hit.id)));
  }
}

function drawn(hit, { rank, like, open, fresh }) {
  const scored = typeof hit.score === "number";
  const name = hit.text || hit.id;
  const node = el(
    "li",
    {
      class: fresh ? "card fresh" : "card",
      tabindex: rank === 1 ? 0 : -1,
      data: { id: hit.id },
      "aria-label": scored ? `${rank}. ${name}, score ${hit.score.toFixed(3)}` : name,
    },
    opener(hit, open, well(hit, { rank: scored ? rank : null })),
  );
  const body = el("div", { class: "body" }, caption(hit));
  if (has(hit, "snippet")) body.append(player(hit));
  if (scored) body.append(score(hit));
  const tagged = tags(hit);
  if (tagged.childElementCount) body.append(tagged);
  body.append(meta(hit, scored));
  body.append(
    el("button", { class: "like", type: "button", tabindex: -1, onclick: () => like(hit) }, "More like this"),
  );
  // Anywhere but on a control, and not while text is selected.
  node.addEventListener("click", (event) => {
    if (!event.target.closest("a, button, input") && !String(getSelection())) open(hit);
  });
  node.append(body);
  return node;
}

// A link to the record, so that it can be copied or opened in another tab.
function opener(hit, open, content) {
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    open(hit);
  };
  return el("a", { class: "open", href: recordHash(hit.id), tabindex: -1, "aria-label": `Open ${hit.text || hit.id}`, onclick: follow }, content);
}

function caption(hit) {
  const line = el("p", { class: "caption" });
  const put = ({ text, unread }) => {
    line.classList.toggle("absent", !text);
    line.textContent = text || absence("Its text", unread ? {} : GONE);
    if (text) line.title = text;
  };
  if (hit.text) put(hit);
  else if (hit.modalities.includes("text")) {
    // Redis does not have it: it may be rebuilt from Kafka.
    line.textContent = " ";
    line.show = () => call(`/v1/shown?id=${encodeURIComponent(hit.id)}`).then(put, (error) => put({ unread: error.status !== 404 }));
    seen.observe(line);
  } else {
    line.textContent = hit.id;
    line.classList.add("named");
  }
  return line;
}

function score(hit) {
  return el("div", { class: "score", title: "Cosine similarity of the query and the vector that was searched; 1 is the same direction" }, bar(hit.score, hit.matched), el("span", {}, hit.score.toFixed(3)));
}

// A similarity as a bar in the colour of its modality; a cut-off is a mark on it.
export function bar(value, modality, cut = null) {
  const fill = el("i", { data: { modality: modality ?? "" } });
  fill.style.width = `${Math.round(Math.min(1, Math.max(0.01, value)) * 100)}%`;
  const node = el("div", { class: "bar", "aria-hidden": "true" }, fill);
  if (cut === null || cut <= 0 || cut >= 1) return node;
  const mark = el("b");
  mark.style.left = `${cut * 100}%`;
  node.append(mark);
  return node;
}

// Why it matched: the query's similarity with each of the record's own vectors, the closest first.
export const reasons = (hit) => Object.entries(hit.scores ?? {}).sort((a, b) => b[1] - a[1]);

function tags(hit) {
  const list = el("div", { class: "tags" });
  for (const [modality, value] of reasons(hit)) {
    const best = modality === hit.matched;
    list.append(
      el(
        "span",
        { class: best ? "tag" : "tag other", data: { modality }, title: `Similarity of the query and this record's ${nounOf(modality)}${best ? ", the closest" : ""}` },
        `${nounOf(modality)} ${value.toFixed(2)}`,
      ),
    );
  }
  const labels = hit.labels ?? {};
  for (const [task, label] of Object.entries(labels).slice(0, MAX_TASKS)) {
    for (const one of [label].flat().slice(0, 3)) list.append(el("span", { class: "tag", title: task }, String(one)));
  }
  for (const [task, label] of Object.entries(hit.predicted ?? {}).slice(0, MAX_TASKS)) {
    if (task in labels || label === null) continue;
    const text = typeof label === "number" ? Number(label.toPrecision(4)) : [label].flat().slice(0, 3).join(", ");
    if (text === "") continue;
    list.append(el("span", { class: "tag guess", title: `${task}, as predicted` }, `${text}?`));
  }
  return list;
}

function meta(hit, scored) {
  const line = el("p", { class: "meta" });
  const put = (node) => {
    if (line.childNodes.length) line.append(" · ");
    line.append(node);
  };
  const tagged = (name, value) => name.startsWith("labels.") || String(hit.labels?.[name]) === String(value); // as a tag already
  for (const [name, value] of Object.entries(hit.meta).filter(([n, v]) => v !== null && !tagged(n, v)).slice(0, MAX_META)) {
    const text = [value].flat().join(", ");
    put(el("span", { title: short(`${name}: ${text}`, MAX_TITLE) }, `${short(name)} `, el("b", {}, short(text))));
  }
  if (hit.ts) put(el("time", { datetime: iso(hit.ts), data: { ts: hit.ts } }, ago(hit.ts)));
  if (scored) line.title = `${hit.id}, model ${hit.model}, version ${number(hit.version)}`;
  return line;
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

let playing = null; // one sound at a time

// `kind` is snippet, its first seconds, or sound. It stops when `signal` is aborted.
export function player(hit, { kind = "snippet", signal } = {}) {
  const button = el("button", { type: "button", tabindex: -1, "aria-label": "Play its sound" }, icon(PLAY));
  const range = el("input", { type: "range", min: 0, max: 1000, value: 0, tabindex: -1, "aria-label": "Position in the sound" });
  const time = el("time", {}, "");
  const node = el("div", { class: "player" }, button, el("span", { class: "listen", "aria-hidden": "true" }, "Listen"), range, time);
  let audio = null;
  const draw = () => {
    node.classList.toggle("loaded", Boolean(audio?.duration));
    const share = audio && audio.duration ? audio.currentTime / audio.duration : 0;
    range.value = Math.round(share * 1000);
    range.style.setProperty("--done", `${share * 100}%`);
    time.textContent = audio?.duration ? clock(Math.ceil(audio.duration)) : "";
    const on = Boolean(audio && !audio.paused);
    button.replaceChildren(icon(on ? PAUSE : PLAY));
    button.setAttribute("aria-label", on ? "Pause" : "Play its sound");
    if (on) requestAnimationFrame(draw);
  };
  const absent = (error) => node.replaceChildren(el("span", { class: "absent" }, absence("Its sound", error)));
  const again = () => source(kind, hit, { here: true }).then((url) => release(url) ?? absent({}), absent);
  button.addEventListener("click", async () => {
    if (!audio) {
      audio = new Audio();
      for (const event of ["play", "pause", "ended", "loadedmetadata"]) audio.addEventListener(event, draw);
      audio.addEventListener("error", again);
      try {
        audio.src = await source(kind, hit);
      } catch (error) {
        absent(error);
        return;
      }
    }
    if (!audio.paused) {
      audio.pause();
      return;
    }
    if (playing && playing !== audio) playing.pause();
    playing = audio;
    audio.play().catch(() => {});
  });
  signal?.addEventListener("abort", () => audio?.pause());
  range.addEventListener("input", () => {
    if (audio?.duration) audio.currentTime = (range.value / 1000) * audio.duration;
    draw();
  });
  return node;
}

// Placeholders of the size of cards, until the first answer.
export function ghosts(count) {
  return Array.from({ length: count }, () =>
    el(
      "li",
      { class: "card ghost", "aria-hidden": "true" },
      el("div", { class: "well" }),
      el("div", { class: "body" }, el("div", { class: "line" }), el("div", { class: "line short" })),
    ),
  );
}

export function arrival(record, { open, fresh }) {
  return el(
    "li",
    { data: { id: record.id } },
    el(
      "button",
      { class: fresh ? "arrival fresh" : "arrival", type: "button", onclick: () => open(record) },
      well(record, { words: false }),
      el("span", { class: "what" }, record.text || record.id),
      el("time", { data: { ts: record.ts } }, ago(record.ts)),
    ),
  );
}
