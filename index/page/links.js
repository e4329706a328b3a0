// The address of what is shown: query, options, cut-off and the record that is open.
//
// #q=WORDS&id=LIKE&image=KEY&vector=NAME&k=24&filter=JSON&min=0.4&record=ID
//
// A file has its key under the name of its modality.

import { FILES, nounOf, served } from "./modalities.js";

const SHOWN_K = "24";

export function build({ what, keys = {}, vector, k, where, min }) {
  const parts = new URLSearchParams();
  const media = FILES.filter((kind) => what?.[kind]);
  // Without a key the bytes are in this page only, so that a link would be another search.
  if (!what || media.some((kind) => !keys[kind])) return "";
  if (what.text) parts.set("q", what.text);
  if (what.id) parts.set("id", what.id);
  for (const kind of media) parts.set(kind, keys[kind]);
  if (vector !== "fused") parts.set("vector", vector);
  if (k !== SHOWN_K) parts.set("k", k);
  if (where) parts.set("filter", JSON.stringify(where));
  if (min !== null) parts.set("min", String(min));
  return String(parts);
}

// `wrong` are sentences about what is left out of the link.
export function parse() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const wrong = [];
  let where = null;
  try {
    where = JSON.parse(parts.get("filter"));
    if (where !== null && (typeof where !== "object" || Array.isArray(where))) throw new Error("no object");
  } catch {
    where = null;
    wrong.push("The filter of this link cannot be read, so that nothing is filtered.");
  }
  const vector = parts.get("vector") ?? "fused";
  const vectors = ["fused", ...served()];
  if (!vectors.includes(vector)) wrong.push(`This link searches the vector “${vector.slice(0, 40)}”, and there are ${vectors.join(", ")}: fused is searched.`);
  const kinds = FILES.filter((kind) => parts.has(kind));
  for (const kind of kinds) if (!served().includes(kind)) wrong.push(`This link searches by a ${nounOf(kind)}, which the served version does not know: it is left out.`);
  const min = Number.parseFloat(parts.get("min"));
  return {
    text: parts.get("q") ?? "",
    id: parts.get("id"),
    keys: Object.fromEntries(kinds.filter((kind) => served().includes(kind)).map((kind) => [kind, parts.get(kind)])),
    vector: vectors.includes(vector) ? vector : "fused",
    k: parts.get("k") ?? SHOWN_K,
    where,
    min: Number.isFinite(min) ? min : null,
    record: parts.get("record"),
    search: without(parts, "record"),
    wrong,
  };
}

function without(parts, name) {
  const rest = new URLSearchParams(parts);
  rest.delete(name);
  return String(rest);
}

// Show a search in the address; `replace` keeps the history as it is.
export function go(search, { replace = false, record = null } = {}) {
  const parts = new URLSearchParams(search);
  if (record !== null) parts.set("record", record);
  const hash = String(parts) ? `#${parts}` : "";
  if (hash === location.hash) return;
  const address = hash || location.pathname;
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
}

// The hash of one record, beside the search that is shown.
export function recordHash(id) {
  const parts = new URLSearchParams(parse().search);
  parts.set("record", id);
  return `#${parts}`;
}
