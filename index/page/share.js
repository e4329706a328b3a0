// Sharing: the address of a search as a link. A file is kept by the service, under its hash, because
// a link cannot hold it.

import { call } from "./api.js";
import { keysOf, mediaParts } from "./ask.js";
import { $, el } from "./dom.js";
import { build } from "./links.js";

const KEPT = "The link works as long as the service keeps its files: 30 days at most, less if many are shared.";
const MOST = 3 * 1024 * 1024; // bytes of a file, as the service takes them

let newest = null; // the last press; an older one shows nothing any more

// `current` is the search as `build` takes it; `shared` gets its hash when the media have their keys.
export function prepareSharing({ current, shared, failed }) {
  $("share").onclick = () => share(current, shared).catch((error) => failed(`The link could not be made: ${error.message}`));
}

// The search may change while its media are sent: all that the link holds is read before.
async function share(current, shared) {
  const press = (newest = {});
  const search = current();
  const media = mediaParts();
  const unsent = media.filter(([, part]) => !part.key);
  if (unsent.length) {
    const body = {};
    for (const [kind, part] of unsent) body[kind] = await base64(part);
    const keys = await call("/v1/shared", { body });
    for (const [kind, part] of unsent) part.key = keys[kind];
  }
  const hash = build({ ...search, keys: keysOf(media) });
  shared(hash);
  if (press === newest) await show(`${location.origin}${location.pathname}#${hash}`, media.length ? KEPT : "");
}

function base64({ name, file }) {
  if (file.size > MOST) throw new Error(`${name} has ${file.size} bytes, ${MOST} can be shared`);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(new Error(`${name} cannot be read`));
    reader.onload = () => resolve(reader.result.split(",")[1]);
    reader.readAsDataURL(file);
  });
}

// Copies a link and shows it, for where the clipboard is not allowed.
export async function show(link, detail = "") {
  let copied = true;
  try {
    await navigator.clipboard.writeText(link);
  } catch {
    copied = false; // such as a page that is not on https or this machine
  }
  const box = el("input", { type: "text", readonly: true, value: link, "aria-label": "Link", onfocus: (event) => event.target.select() });
  const close = el("button", { class: "quiet", type: "button", onclick: () => $("shared").replaceChildren() }, "Close");
  const words = el("p", {}, [copied ? "The link is copied." : "Copy this link:", detail].filter(Boolean).join(" "));
  $("shared").replaceChildren(el("div", { class: "shared" }, words, box, close));
  if (!copied) box.focus();
}
