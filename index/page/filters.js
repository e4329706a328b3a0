// Filters on meta: chips for the fields in the map's sample, JSON for experts.

import { $, el } from "./dom.js";

const MOST_CHIPS = 16;

// name -> {values: Set} or {gte, lte}
const chosen = new Map();
let expert = "";
let fields = [];
let changed = () => {};

export function prepareFilters(run) {
  changed = run;
  $("filter-button").onclick = () => {
    const open = $("filters").hidden;
    $("filters").hidden = !open;
    $("filter-button").setAttribute("aria-expanded", String(open));
    if (open) draw();
  };
}

export function setFields(all) {
  const before = JSON.stringify(fields.map((field) => [field.name, field.choices]));
  fields = all.filter((field) => field.kind === "meta");
  const now = JSON.stringify(fields.map((field) => [field.name, field.choices]));
  if (before !== now && !$("filters").hidden && !$("filters").contains(document.activeElement)) draw();
}

// The filter in the service's format; null for none. Throws for invalid JSON.
export function filter() {
  const flat = {};
  for (const [name, choice] of chosen) {
    if (choice.values) {
      const values = [...choice.values];
      flat[name] = values.length === 1 ? values[0] : { in: values };
    } else flat[name] = { ...choice };
  }
  const simple = Object.keys(flat).length ? flat : null;
  if (!expert) return simple;
  let own;
  try {
    own = JSON.parse(expert);
  } catch {
    throw new Error("the filter is not JSON");
  }
  return simple ? { and: [simple, own] } : own;
}

// From a link: conditions that chips can express become chips, the others stay JSON.
export function setFilter(conditions) {
  chosen.clear();
  expert = "";
  const plain = (value) => ["string", "number", "boolean"].includes(typeof value);
  const entries = Object.entries(conditions ?? {});
  const simple = entries.every(
    ([name, value]) => !["and", "or", "not"].includes(name) && (plain(value) || (Array.isArray(value?.in) && value.in.every(plain))),
  );
  if (simple) for (const [name, value] of entries) chosen.set(name, { values: new Set(plain(value) ? [value] : value.in) });
  else expert = JSON.stringify(conditions);
  drawActive();
  if (!$("filters").hidden) draw();
}

function toggle(name, value) {
  const values = chosen.get(name)?.values ?? new Set();
  if (values.has(value)) values.delete(value);
  else values.add(value);
  if (values.size) chosen.set(name, { values });
  else chosen.delete(name);
  drawActive();
  changed();
}

function drawActive() {
  const nodes = [...chosen].map(([name, choice]) => {
    const what = choice.values ? [...choice.values].join(", ") : [choice.gte ?? "", choice.lte ?? ""].join(" – ");
    return remover(`${name}: ${what}`, () => chosen.delete(name));
  });
  if (expert) nodes.push(remover(expert.length > 40 ? `${expert.slice(0, 40)}…` : expert, () => (expert = "")));
  $("active").replaceChildren(...nodes);
}

const remover = (text, remove) =>
  el(
    "button",
    {
      class: "chip",
      type: "button",
      "aria-label": `Remove the filter ${text}`,
      onclick: () => {
        remove();
        drawActive();
        if (!$("filters").hidden) draw();
        changed();
      },
    },
    text,
    el("span", { "aria-hidden": "true" }, "×"),
  );

function draw() {
  const groups = fields.map((field) => el("div", {}, el("h3", {}, field.name), field.choices.length ? chips(field) : range(field)));
  if (!groups.length) groups.push(el("p", { class: "none" }, "The records that are there have no meta to filter by."));
  $("filters").replaceChildren(...groups, json());
}

function chips(field) {
  return el(
    "div",
    { class: "values", role: "group", "aria-label": field.name },
    ...field.choices.slice(0, MOST_CHIPS).map((value, place) => {
      const button = el(
        "button",
        {
          class: "chip",
          type: "button",
          "aria-pressed": String(Boolean(chosen.get(field.name)?.values?.has(value))),
          onclick: () => {
            toggle(field.name, value);
            button.setAttribute("aria-pressed", String(Boolean(chosen.get(field.name)?.values?.has(value))));
          },
        },
        String(value),
        el("small", {}, String(field.counts[place])),
      );
      return button;
    }),
  );
}

function range(field) {
  const now = chosen.get(field.name) ?? {};
  const box = (bound, label, hint) =>
    el("input", {
      type: "number",
      step: "any",
      "aria-label": `${field.name} ${label}`,
      placeholder: String(hint),
      value: now[bound] ?? null,
      onchange: (event) => {
        const { gte, lte } = { ...chosen.get(field.name), [bound]: event.target.value === "" ? undefined : Number(event.target.value) };
        const bounds = { ...(gte !== undefined && { gte }), ...(lte !== undefined && { lte }) };
        if (Object.keys(bounds).length) chosen.set(field.name, bounds);
        else chosen.delete(field.name);
        drawActive();
        changed();
      },
    });
  return el("div", { class: "range" }, box("gte", "from", field.least), "to", box("lte", "to", field.most));
}

function json() {
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true }, "That is not JSON.");
  const area = el("textarea", {
    "aria-label": "Filter as JSON",
    placeholder: '{"year": {"gte": 2020}, "lang": {"in": ["de", "fr"]}}',
    spellcheck: "false",
    onchange: (event) => {
      const text = event.target.value.trim();
      try {
        if (text) JSON.parse(text);
      } catch {
        wrong.hidden = false;
        return;
      }
      wrong.hidden = true;
      expert = text;
      drawActive();
      changed();
    },
  });
  area.value = expert;
  return el("details", { open: Boolean(expert) }, el("summary", {}, "As JSON"), area, wrong);
}
