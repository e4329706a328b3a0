// The modalities of the served version, as the node names them, and what the page offers for them.

import { MODALITIES } from "./constants.js";
import { $, el, sentence } from "./dom.js";
import { ableToRecord } from "./record.js";

export const FILES = Object.keys(MODALITIES).filter((name) => MODALITIES[name].endings.length);
const LIST = new Intl.ListFormat("en-GB", { type: "disjunction" });

let names = [];
let uploadBytes = 0;
let answered;
export const whenKnown = new Promise((resolve) => (answered = resolve));

export const served = () => names;
export const maxUpload = () => uploadBytes;
export const nounOf = (name) => MODALITIES[name]?.noun ?? name;

// Whether a record has what a card shows: a thumb or a snippet.
export const has = (record, shown) => record.modalities.some((name) => MODALITIES[name]?.shown === shown);

const fileNames = () => names.filter((name) => FILES.includes(name));
const nouns = () => fileNames().map((name) => `a ${nounOf(name)}`);

// The files that may be asked by, as "a picture or a sound"; empty if there are none.
export const askable = () => LIST.format(nouns());

// The modality that a file is asked as; null for none. Of a film the sound is taken where videos are not.
export function kindOf({ name, type }) {
  const ending = name.slice(name.lastIndexOf(".")).toLowerCase();
  const kind = FILES.find((one) => type.startsWith(`${one}/`)) ?? FILES.find((one) => MODALITIES[one].endings.includes(ending));
  return [kind, kind === "video" ? "audio" : null].find((one) => names.includes(one)) ?? null;
}

// Offer these modalities and no others, for files of up to `upload` bytes.
export function setServed(next, upload) {
  uploadBytes = upload;
  if (String(next) === String(names)) return;
  names = next;
  const chosen = document.querySelector("#vector input:checked").value;
  const choices = names.map((name) => choice(name, name === chosen));
  $("vector").replaceChildren(...[...$("vector").children].slice(0, 2), ...choices); // its legend, and Everything
  if (!document.querySelector("#vector input:checked")) document.querySelector("#vector input").checked = true;
  $("vector").hidden = names.length < 2;
  const words = names.includes("text");
  const drop = askable() && `drop ${askable()}`;
  $("words").placeholder = matchMedia("(max-width: 560px)").matches
    ? sentence([...(words ? ["words"] : []), ...nouns()].join(", "))
    : sentence([...(words ? ["type words"] : []), ...(drop ? [drop] : [])].join(", "));
  $("attach").hidden = !drop;
  $("attach").title = `Add ${askable()}`;
  $("attach").setAttribute("aria-label", `Add ${askable()}`);
  $("record").hidden = !ableToRecord() || !names.includes("audio");
  $("file").accept = fileNames().flatMap((name) => [`${name}/*`, ...MODALITIES[name].endings]).join(",");
  $("drop-text").textContent = `Drop ${askable()}`;
  answered();
}

function choice(name, checked) {
  const input = el("input", { type: "radio", name: "vector", value: name, checked });
  return el("label", { title: `Compare only with the records' ${nounOf(name)}s` }, input, el("span", {}, sentence(nounOf(name))));
}
