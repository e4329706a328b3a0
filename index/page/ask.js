// Query input: text, and media that are dropped, pasted, chosen or recorded.

import { bytes } from "./api.js";
import { $, FILM, NEAR, WAVE, el, icon } from "./dom.js";
import { askable, kindOf, maxUpload, nounOf, whenKnown } from "./modalities.js";
import { record, toWav } from "./record.js";

const PLAIN_PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const PLAIN_SOUNDS = ["audio/wav", "audio/x-wav", "audio/wave", "audio/ogg", "audio/flac", "audio/x-flac", "audio/mpeg"];
const LARGE = 3 * 1024 * 1024; // a phone's photo is made smaller before it is sent
const SIDE = 1280;
// What is made of a file before it is sent, by modality; others are sent as they are.
const MADE = { image: smaller, audio: readable };
const GLYPHS = { id: NEAR, audio: WAVE, video: FILM };

// At most one part of each kind; "more like this" stands alone.
const parts = new Map();
let cleared = 0; // how often: what was being read before is not attached
let recording = null;
let changed = () => {};

// `asked` runs the search, `failed` shows an error.
export function prepareAsking({ asked, failed }) {
  changed = asked;
  const take = (files) => takeFiles(files).catch((error) => failed(error.message));
  $("attach").onclick = () => $("file").click();
  $("file").onchange = (event) => {
    take([...event.target.files]);
    event.target.value = "";
  };
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      take(files);
    }
  });
  dropping(take);
  $("record").onclick = () => toggleRecording().catch((error) => failed(error.message));
}

function dropping(take) {
  let depth = 0;
  const over = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const show = (on) => ($("drop").hidden = !on || !askable());
  addEventListener("dragenter", (event) => over(event) && show(++depth > 0));
  addEventListener("dragleave", (event) => over(event) && show(--depth > 0));
  addEventListener("dragover", (event) => over(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    take([...event.dataTransfer.files]);
  });
}

async function takeFiles(files) {
  await whenKnown;
  const known = files.filter(kindOf);
  if (!known.length && files.length) throw new Error(`${files[0].name}: ${askable() ? `is not ${askable()}` : "the served version knows only words"}`);
  for (const file of known) {
    const kind = kindOf(file);
    await attach(kind, file.name || `a ${nounOf(kind)}`, MADE[kind]?.(file) ?? file);
  }
  if (known.length) changed();
}

async function smaller(file) {
  if (PLAIN_PICTURES.includes(file.type) && file.size <= LARGE) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    if (PLAIN_PICTURES.includes(file.type)) return file; // the service says what is wrong with it
    throw new Error(`${file.name}: this browser cannot read that kind of picture`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

async function readable(file) {
  if (PLAIN_SOUNDS.includes(file.type) && file.size <= LARGE) return file;
  try {
    return await toWav(file);
  } catch {
    if (PLAIN_SOUNDS.includes(file.type)) return file;
    throw new Error(`${file.name}: this browser cannot read that kind of sound`);
  }
}

// `blob` may be a promise. Nothing is attached if the query is cleared meanwhile.
async function attach(kind, name, blob, key = null) {
  const before = cleared;
  const file = await blob;
  if (file.size > maxUpload()) throw new Error(`${name}: has ${file.size} bytes, ${maxUpload()} can be sent`);
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Error(`${name}: cannot be read`);
  });
  if (cleared !== before) return;
  parts.delete("id");
  forget(kind);
  parts.set(kind, { name, key, file, url: kind === "image" ? URL.createObjectURL(file) : null });
  draw();
}

async function toggleRecording() {
  const button = $("record");
  if (recording) {
    recording.stop();
    return;
  }
  recording = await record((seconds) => draw(seconds));
  button.setAttribute("aria-pressed", "true");
  button.setAttribute("aria-label", "Stop recording and search");
  draw(0);
  try {
    const wav = await recording.done;
    recording = null;
    await attach("audio", "Recording", wav);
    changed();
  } finally {
    recording = null;
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", "Record from the microphone");
    draw();
  }
}

function forget(kind) {
  const part = parts.get(kind);
  if (part?.url) URL.revokeObjectURL(part.url);
  parts.delete(kind);
}

function draw(seconds = null) {
  const nodes = [...parts].map(([kind, part]) =>
    el(
      "div",
      { class: "part", data: { kind } },
      kind === "image"
        ? el("img", { src: part.url, alt: "" })
        : el("div", { class: "glyph" }, icon(GLYPHS[kind] ?? FILM)),
      el("span", {}, part.name),
      el(
        "button",
        {
          type: "button",
          "aria-label": `Remove ${part.name}`,
          onclick: () => {
            forget(kind);
            draw();
            changed();
          },
        },
        "×",
      ),
    ),
  );
  if (recording) {
    nodes.push(
      el("div", { class: "part busy", data: { kind: "audio" } }, el("div", { class: "glyph" }, icon(WAVE)),
        el("span", {}, `Recording 0:${String(Math.floor(seconds ?? 0)).padStart(2, "0")}, press the microphone to stop`)),
    );
  }
  $("parts").replaceChildren(...nodes);
}

// The query part of a search's body; null for an empty query.
export function asked() {
  const words = $("words").value.trim();
  if (words && parts.has("id")) {
    parts.delete("id");
    draw();
  }
  if (parts.has("id")) return { id: parts.get("id").id };
  const body = {};
  if (words) body.text = words;
  for (const [kind, part] of mediaParts()) body[kind] = part.file;
  return Object.keys(body).length ? body : null;
}

// The query's files, [kind, {file, key}] each: a Blob, and the key in the service once shared.
export const mediaParts = () => [...parts].filter(([kind]) => kind !== "id");
export const keysOf = (media) => Object.fromEntries(media.map(([kind, part]) => [kind, part.key]));

// Take the files of a shared link. Throws Refused if they are no longer kept.
export async function askShared(keys) {
  const fetched = ([kind, key]) => attach(kind, `Shared ${nounOf(kind)}`, bytes(`/v1/shared?key=${encodeURIComponent(key)}`), key);
  const ends = await Promise.allSettled(Object.entries(keys).map(fetched)); // also the others of a failed one
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

export function askLike(id, name) {
  clearAsking();
  parts.set("id", { id, name: `Like “${name}”` });
  draw();
}

export function clearAsking() {
  cleared += 1;
  recording?.cancel();
  for (const kind of [...parts.keys()]) forget(kind);
  $("words").value = "";
  draw();
}
